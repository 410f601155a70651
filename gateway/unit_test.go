package gateway

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

func TestReadUsers(t *testing.T) {
	t.Parallel()
	secret := "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0$" + strings.Repeat("A", 43) + "=:" + strings.Repeat("B", 42) + "A="
	got, err := readUsers(strings.NewReader("; comment\n\n\"a \"\"b\"\"\"  \"pass\"\n# more\n\"svc\" \"" + secret + "\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{`a "b"`, "svc"}) {
		t.Errorf("users: got %q", names)
	}
	if got[`a "b"`].password != "pass" || got["svc"].password != "" || got["svc"].stored.Iters != 4096 {
		t.Error("secrets were not read")
	}
	for _, bad := range []string{
		`"a" "geheim`, `a geheim`, `"a" "geheim" "c"`, `"a"`, `"" "geheim"`, `"a" ""`, "\"a\" \"geheim\"\n\"a\" \"geheim\"",
		`"a" "md50123456789abcdef0123456789abcdef"`, `"a" "SCRAM-SHA-256$x:geheim$a:b"`,
	} {
		if _, err := readUsers(strings.NewReader(bad)); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: got error %v, want one without the secret", bad, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	dsn, err := pg.Parse("postgres://app@127.0.0.1/app")
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Listen: "127.0.0.1:0", Owner: source, Backends: map[Backend]pg.DSN{source: dsn}}
	for what, change := range map[string]func(*Config){
		"open to all":        func(c *Config) { c.Listen = "0.0.0.0:5432" },
		"any address":        func(c *Config) { c.Listen = ":5432" },
		"read door open":     func(c *Config) { c.ReadListen = "192.0.2.1:5432" },
		"no port":            func(c *Config) { c.Listen = "localhost" },
		"no address":         func(c *Config) { c.Listen = "" },
		"owner unknown":      func(c *Config) { c.Owner = target },
		"no backend":         func(c *Config) { c.Backends = nil },
		"empty backend":      func(c *Config) { c.Backends = map[Backend]pg.DSN{source: {}} },
		"missing users file": func(c *Config) { c.Users = "no/such/file" },
		"writes of nobody":   func(c *Config) { c.Reads.YourWrites = SeeOwner },
		"shadow of nobody":   func(c *Config) { c.Shadow.Share = 0.5 },
		"pooled reads":       func(c *Config) { c.Pooling, c.Reads.By = TransactionPooling, ByTransaction },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", what)
		} else if what == "open to all" && hint.Of(err) == "" {
			t.Errorf("%s: no hint in %v", what, err)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

func TestTracker(t *testing.T) {
	t.Parallel()
	// Upper and lower case letters are client messages; > is an idle ReadyForQuery, ] one inside a block.
	for _, tc := range []struct {
		talk   string
		border bool
	}{
		{"", true},
		{"Q", false},
		{"Q>", true},
		{"Q]", false},
		{"Q]Q>", true},
		{"QQ>", false},
		{"QQ>>", true},
		{"PBDES>", true},
		{"PBDES", false},
		{"PDH", false},
		{"PDHBES>", true},
		{"PS>B", false},
		{"PBESPBES>", false},
		{"PBESPBES>>", true},
		{"Qddc>", true},
		{"Qddf>", true},
		{"PBESddcS>", true}, // libpq: the first Sync is swallowed by COPY
		{"PBEddcS>", true},
		{"PBESddc", false},
		{"F>", true},
		{"S>", true},
	} {
		tr := tracker{status: statusIdle}
		for _, c := range []byte(tc.talk) {
			switch c {
			case '>':
				tr.ready('I')
			case ']':
				tr.ready('T')
			default:
				tr.sent(c)
			}
		}
		if got := tr.border(); got != tc.border {
			t.Errorf("%q: border is %t, want %t", tc.talk, got, tc.border)
		}
	}
}

func TestMemo(t *testing.T) {
	t.Parallel()
	type want struct {
		settings []string
		opaque   bool
	}
	for sql, w := range map[string]want{
		"SET app.tenant = 'x'":                                   {settings: []string{"app.tenant"}},
		"select 1; set  session\n\"App\".\"User\" TO 5":          {settings: []string{"app.user"}},
		"SET LOCAL a.b = 1":                                      {settings: []string{"a.b"}},
		"SET work_mem = 1":                                       {},
		"OFFSET a.b":                                             {},
		"SELECT set_config('a.b', $1, false)":                    {settings: []string{"a.b"}},
		"SELECT set_config( 'a.b' , $1, false)":                  {settings: []string{"a.b"}},
		"SELECT set_config($1, $2, false)":                       {opaque: true},
		"SELECT set_config($1, $2, true)":                        {},
		"SELECT set_config($1, f(1,2), true ) , g(false)":        {},
		"SELECT set_config('a.' || 'b', '', false)":              {opaque: true},
		"SELECT set_config('it''s', '', false)":                  {opaque: true},
		"SELECT set_config('work_mem', '1', false)":              {},
		"SELECT reset_config(1)":                                 {},
		"set":                                                    {},
		"SET ":                                                   {},
		"SELECT set_config(":                                     {opaque: true},
		strings.Repeat(" ", 20_000) + "SET app.far = 1":          {settings: []string{"app.far"}},
		"SET app.one=1" + strings.Repeat(" ", 9_000) + ";SELECT": {settings: []string{"app.one"}},
	} {
		for _, typ := range []byte{msgQuery, msgParse} {
			body := sql + "\x00"
			if typ == msgParse {
				body = "name\x00" + body + "\x00\x00"
			}
			msg := append([]byte{typ, 0, 0, 0, 0}, body...)
			for _, size := range []int{len(msg), 8192, 7} {
				var m memo
				m.begin(typ)
				for rest := msg; len(rest) > 0; {
					n := min(size, len(rest))
					m.observe(rest[:n], n == len(rest))
					rest = rest[n:]
				}
				got := slices.Sorted(maps.Keys(m.settings))
				if diff := cmp.Diff(w.settings, got); diff != "" || m.opaque != w.opaque {
					t.Errorf("%.60q (%c): opaque %t, settings %s", sql, typ, m.opaque, diff)
				}
			}
		}
	}
}

func TestMemoKeepsTheUnnamedStatement(t *testing.T) {
	t.Parallel()
	var m memo
	say := func(msg pgproto3.FrontendMessage) {
		b := appendMessage(nil, msg)
		m.begin(b[0])
		m.observe(b[:6], false)
		m.observe(b[6:], true)
	}
	say(&pgproto3.Parse{Query: "SELECT 1", ParameterOIDs: []uint32{23}})
	say(&pgproto3.Parse{Name: "other", Query: "SELECT 2"})
	say(&pgproto3.Bind{})
	want := appendMessage(nil, &pgproto3.Parse{Query: "SELECT 1", ParameterOIDs: []uint32{23}})[headerLen:]
	if !bytes.Equal(m.unnamed, want) {
		t.Errorf("unnamed: got %q, want %q", m.unnamed, want)
	}
	say(&pgproto3.Query{String: "SELECT 3"})
	if len(m.unnamed) != 0 {
		t.Errorf("after a Query: got %q, want nothing", m.unnamed)
	}
	say(&pgproto3.Parse{Query: strings.Repeat("x", maxUnnamed)})
	if len(m.unnamed) != 0 {
		t.Error("a statement beyond the bound is kept")
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	s := h.stalls()
	near := func(got, want time.Duration) bool { return got >= want && got <= want+want/25 }
	if s.Clients != 1000 || !near(s.P50, 500*time.Millisecond) || !near(s.P99, 990*time.Millisecond) || s.Max != time.Second {
		t.Errorf("stalls of 1 ms to 1 s: got %+v", s)
	}
	for _, d := range []time.Duration{0, 1, time.Microsecond, 63 * time.Microsecond, 64 * time.Microsecond, time.Hour, 1 << 62} {
		if i := bucket(d); i < bucketsPer*40 && upper(i) < d.Truncate(time.Microsecond) {
			t.Errorf("%s is in bucket %d, which ends at %s", d, i, upper(i))
		}
	}
	h.reset()
	if got := h.stalls(); got != (Stalls{}) {
		t.Errorf("after reset: got %+v", got)
	}
}

// walk relays input through a window in reads of random sizes, as upstream does.
func walk(input []byte, seed uint64) (relayed, types []byte, err error) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := newWindow(16)
	var m memo
	for len(input) > 0 {
		room := w.room()
		n := copy(room[:min(len(room), 1+rnd.IntN(40))], input)
		input = input[n:]
		w.filled(n)
		for {
			if w.left == 0 {
				typ, size, ok, err := w.header()
				if err != nil {
					return relayed, types, err
				}
				if !ok {
					break
				}
				types = append(types, typ)
				w.begin(size)
				m.begin(typ)
			}
			m.observe(w.see(), w.left == 0)
			if w.left > 0 {
				break
			}
		}
		relayed = append(relayed, w.seen()...)
		w.relayed()
	}
	return relayed, types, nil
}

// FuzzWindow checks that whatever the input and however it is cut, messages are found where they
// are and bytes are relayed as they came.
func FuzzWindow(f *testing.F) {
	for _, msgs := range [][]pgproto3.Message{
		{&pgproto3.Query{String: "SET a.b = 1"}},
		{&pgproto3.Parse{Query: "SELECT set_config($1, 'b', false)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}},
		{&pgproto3.CopyData{Data: bytes.Repeat([]byte("x"), 100)}, &pgproto3.CopyDone{}, &pgproto3.Terminate{}},
	} {
		var b []byte
		for _, m := range msgs {
			b = appendMessage(b, m)
		}
		f.Add(b, uint64(1))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint64(2))
	f.Add([]byte{msgQuery, 0xff, 0xff, 0xff, 0xff}, uint64(3))
	f.Fuzz(func(t *testing.T, input []byte, seed uint64) {
		var want []byte
		rest, bad := input, false
		for len(rest) >= headerLen {
			n := binary.BigEndian.Uint32(rest[1:])
			if bad = n < 4 || n > maxMessage; bad {
				break
			}
			want = append(want, rest[0])
			rest = rest[min(len(rest), int(n)+1):]
		}
		relayed, types, err := walk(input, seed)
		if (err != nil) != bad || !bytes.Equal(types, want) {
			t.Errorf("got messages %q and error %v, want %q and error %t", types, err, want, bad)
		}
		if !bytes.HasPrefix(input, relayed) || err == nil && len(relayed) != len(input)-len(rest) {
			t.Errorf("relayed %q of %q", relayed, input)
		}
	})
}

// FuzzStartup checks that no first packet does harm.
func FuzzStartup(f *testing.F) {
	f.Add(appendMessage(nil, &pgproto3.StartupMessage{ProtocolVersion: protocol3, Parameters: map[string]string{"user": "a", "database": "b"}}))
	f.Add(appendMessage(nil, &pgproto3.SSLRequest{}))
	f.Add(append(appendMessage(nil, &pgproto3.GSSEncRequest{}), appendMessage(nil, &pgproto3.SSLRequest{})...))
	f.Add(appendMessage(nil, &pgproto3.CancelRequest{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}}))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, input []byte) {
		var answers bytes.Buffer
		hello, err := readStartup(readWriter{bytes.NewReader(input), &answers}, nil)
		if err == nil && hello.code != codeCancel && hello.params == nil {
			t.Errorf("got %+v without parameters", hello)
		}
		if n := answers.Len(); n > 4 || strings.Trim(answers.String(), "N") != "" {
			t.Errorf("answered %q", answers.String())
		}
	})
}

type readWriter struct {
	*bytes.Reader
	*bytes.Buffer
}

func (rw readWriter) Read(p []byte) (int, error)  { return rw.Reader.Read(p) }
func (rw readWriter) Write(p []byte) (int, error) { return rw.Buffer.Write(p) }
