package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A state is what a session must find again on another server.
type state struct {
	settings   [][2]string // name and value, in the order in which they are to be set
	statements []statement
}

// A statement is a prepared statement.
type statement struct {
	name, text string
	types      []string // parameter types by name, as the session's search_path shows them
	oids       []uint32 // the same by OID of the old server
	fromSQL    bool     // made by PREPARE, which text then is
}

// An unmovable is the reason why a session cannot go to another server.
type unmovable struct {
	keeps string
	cause error // of the other server, nil when the session itself says it
}

func (u *unmovable) Error() string { return "session keeps " + u.keeps }
func (u *unmovable) Unwrap() error { return u.cause }

// firstUserOID is where OIDs of types begin that a database made itself; below it they are the
// same everywhere.
const firstUserOID = 16384

// captureSQL asks a session, at a border, what it would lose. One row per thing:
// kind, name, value, further.
const captureSQL = `
SELECT 'setting', name, setting, '', '' FROM pg_catalog.pg_settings
 WHERE source = 'session' AND pg_catalog.left(name, 12) <> 'transaction_' AND context <> 'internal'
UNION ALL SELECT 'user', 'session_authorization', session_user::text, '', ''
UNION ALL SELECT 'role', 'role', pg_catalog.current_setting('role'), '', ''
UNION ALL SELECT CASE WHEN from_sql THEN 'prepare' ELSE 'parse' END, name, statement,
       pg_catalog.array_to_string(parameter_types::text[], pg_catalog.chr(31)),
       pg_catalog.array_to_string(parameter_types::oid[], ' ')
  FROM pg_catalog.pg_prepared_statements
UNION ALL SELECT 'keeps', 'temporary objects', '', '', '' WHERE pg_catalog.pg_my_temp_schema() <> 0 AND (
       EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())
    OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.pg_my_temp_schema())
    OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema()))
UNION ALL SELECT 'keeps', 'cursors WITH HOLD', '', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)
UNION ALL SELECT 'keeps', 'advisory locks', '', '', '' WHERE EXISTS (
       SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())
UNION ALL SELECT 'keeps', 'LISTEN registrations', '', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels())`

// captureQuery is captureSQL, plus the custom settings that the memo saw.
func captureQuery(m *memo) []byte {
	var b strings.Builder
	b.WriteString(captureSQL)
	for _, name := range slices.Sorted(maps.Keys(m.settings)) { // note refused quotes in names
		fmt.Fprintf(&b, "\nUNION ALL SELECT 'custom', '%s', pg_catalog.current_setting('%[1]s', true), '', ''", name)
	}
	return appendMessage(nil, &pgproto3.Query{String: b.String()})
}

// add takes one row of captureQuery. user is whom the session was opened for.
func (s *state) add(row [][]byte, user string) error {
	kind, name, value := string(row[0]), string(row[1]), string(row[2])
	switch kind {
	case "setting":
		s.settings = append(s.settings, [2]string{name, value})
	case "custom":
		if row[2] != nil {
			s.settings = append(s.settings, [2]string{name, value})
		}
	case "user":
		if value != user {
			s.settings = append(s.settings, [2]string{name, value})
		}
	case "role":
		if value != "none" {
			s.settings = append(s.settings, [2]string{name, value})
		}
	case "keeps":
		return &unmovable{keeps: name}
	case "parse", "prepare":
		st := statement{name: name, text: value, fromSQL: kind == "prepare"}
		if types := string(row[3]); types != "" {
			st.types = strings.Split(types, "\x1f")
		}
		for f := range strings.FieldsSeq(string(row[4])) {
			oid, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return fmt.Errorf("parameter type of statement %q: %w", name, err)
			}
			st.oids = append(st.oids, uint32(oid))
		}
		s.statements = append(s.statements, st)
	}
	return nil
}

// sort puts the settings into the order in which they can be set: the encoding that the others came
// in first, those that take privileges away last.
func (s *state) sort() {
	rank := func(name string) int {
		switch name {
		case "client_encoding":
			return 0
		case "session_authorization":
			return 2
		case "role":
			return 3
		}
		return 1
	}
	slices.SortStableFunc(s.settings, func(a, b [2]string) int { return rank(a[0]) - rank(b[0]) })
}

// restore makes the state anew on another server.
func (s *state) restore(ctx context.Context, conn *pgconn.PgConn) error {
	if len(s.settings)+len(s.statements) == 0 {
		return nil
	}
	if err := s.restoreSettings(ctx, conn); err != nil {
		return err
	}
	oids, err := s.typeOIDs(ctx, conn)
	if err != nil {
		return err
	}
	pipe := conn.StartPipeline(ctx)
	for _, st := range s.statements {
		if st.fromSQL { // the extended protocol refuses more than one command in the text
			pipe.SendQueryParams(st.text, nil, nil, nil, nil)
			continue
		}
		params := slices.Clone(st.oids)
		for i, name := range st.types {
			if params[i] >= firstUserOID {
				params[i] = oids[name]
			}
		}
		pipe.SendPrepare(st.name, st.text, params)
	}
	if err := finish(pipe); err != nil {
		return fmt.Errorf("prepared statements: %w", err)
	}
	return nil
}

func (s *state) restoreSettings(ctx context.Context, conn *pgconn.PgConn) error {
	if len(s.settings) == 0 {
		return nil
	}
	pipe := conn.StartPipeline(ctx)
	for _, kv := range s.settings {
		pipe.SendQueryParams("SELECT pg_catalog.set_config($1, $2, false)",
			[][]byte{[]byte(kv[0]), []byte(kv[1])}, []uint32{textOID, textOID}, nil, nil)
	}
	if err := finish(pipe); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return nil
}

const textOID = 25

// typeOIDs finds the new server's OIDs of types that are not built in.
func (s *state) typeOIDs(ctx context.Context, conn *pgconn.PgConn) (map[string]uint32, error) {
	found := map[string]uint32{}
	for _, st := range s.statements {
		for i, name := range st.types {
			if _, known := found[name]; known || st.fromSQL || st.oids[i] < firstUserOID {
				continue
			}
			r := conn.ExecParams(ctx, "SELECT pg_catalog.to_regtype($1)::oid", [][]byte{[]byte(name)}, []uint32{textOID}, nil, nil).Read()
			if r.Err != nil {
				return nil, fmt.Errorf("type %s: %w", name, r.Err)
			}
			if len(r.Rows) != 1 || r.Rows[0][0] == nil {
				return nil, fmt.Errorf("type %s does not exist there", name)
			}
			oid, err := strconv.ParseUint(string(r.Rows[0][0]), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("type %s: %w", name, err)
			}
			found[name] = uint32(oid)
		}
	}
	return found, nil
}

// finish ends a pipeline and returns its first error.
func finish(pipe *pgconn.Pipeline) error {
	err := pipe.Sync()
	for err == nil {
		var res any
		if res, err = pipe.GetResults(); err != nil {
			break
		}
		switch res := res.(type) {
		case *pgconn.ResultReader:
			_, err = res.Close()
		case *pgconn.PipelineSync:
			return pipe.Close()
		case nil:
			err = errors.New("pipeline ended early")
		}
	}
	return errors.Join(err, pipe.Close())
}
