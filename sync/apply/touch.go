package apply

import (
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
			t.list = append(t.list, eventstore.Touched{Table: name, Key: t.key(r.key), At: t.at})
		}
		if r.row != nil && (r.key == nil || table.moves(r.key, r.row)) {
			t.list = append(t.list, eventstore.Touched{Table: name, Key: t.keyOf(table, r.row), At: t.at})
		}
	}
}

// key encodes a key.
func (t *touches) key(values []change.Value) []byte {
	start := len(t.keys)
	for _, v := range values {
		t.keys = change.AppendFrame(t.keys, v.Data)
	}
	return t.keys[start:len(t.keys):len(t.keys)]
}

// keyOf encodes the key of a row image.
func (t *touches) keyOf(table *table, row []change.Value) []byte {
	start := len(t.keys)
	for _, k := range table.key {
		t.keys = change.AppendFrame(t.keys, row[k.param].Data)
	}
	return t.keys[start:len(t.keys):len(t.keys)]
}

func (t *table) touchedName() string { return TouchedTable(t.mapping.Source.Name) }

// touched returns one key as a touched one.
func (t *table) touched(key []change.Value, at change.LSN) eventstore.Touched {
	one := touches{at: at}
	return eventstore.Touched{Table: t.touchedName(), Key: one.key(key), At: at}
}
