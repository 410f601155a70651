package apply

import (
	"slices"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// touched returns the keys of the rows that the statements of a batch change, old and new. Nobody asks
// at which of its transactions: who waits for a position has batches end there, see gate.
func touched(stmts []stmt, at change.LSN) []eventstore.Touched {
	rows := 0
	for i := range stmts {
		rows += len(stmts[i].rows)
	}
	t := touches{at: at, list: make([]eventstore.Touched, 0, rows), all: map[*table]bool{}}
	for i := range stmts {
		switch s := &stmts[i]; {
		case s.shape.verb == verbTruncate:
			for _, table := range s.shape.truncate.tables {
				t.everything(table)
			}
		case !s.shape.table.touches:
			t.everything(s.shape.table)
		default:
			t.rows(s.shape.table, s.rows)
		}
	}
	return t.list
}

type touches struct {
	at   change.LSN
	list []eventstore.Touched
	all  map[*table]bool // recorded as a whole
	keys []byte          // where keys are cut from
	key  []change.Value  // of one row
}

// everything records a table as a whole.
func (t *touches) everything(table *table) {
	if !t.all[table] {
		t.all[table] = true
		t.list = append(t.list, eventstore.Touched{Table: table.touchedName(), At: t.at})
	}
}

func (t *touches) rows(table *table, rows []imagePair) {
	name := table.touchedName()
	for _, r := range rows {
		if r.key != nil {
			t.list = append(t.list, eventstore.Touched{Table: name, Key: t.encode(r.key), At: t.at})
		}
		if r.row != nil && (r.key == nil || table.moves(r.key, r.row)) {
			t.key = slices.Grow(t.key[:0], len(table.key))[:len(table.key)]
			table.keyOf(t.key, r.row)
			t.list = append(t.list, eventstore.Touched{Table: name, Key: t.encode(t.key), At: t.at})
		}
	}
}

// encode encodes a key.
func (t *touches) encode(values []change.Value) []byte {
	start := len(t.keys)
	for _, v := range values {
		t.keys = change.AppendFrame(t.keys, v.Data)
	}
	return t.keys[start:len(t.keys):len(t.keys)]
}

func (t *table) touchedName() string { return TouchedTable(t.mapping.Source.Name) }

// touched returns one key as a touched one.
func (t *table) touched(key []change.Value, at change.LSN) eventstore.Touched {
	one := touches{at: at}
	return eventstore.Touched{Table: t.touchedName(), Key: one.encode(key), At: at}
}
