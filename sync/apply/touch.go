package apply

import (
	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// touched returns the keys of the rows that a batch changes, old and new.
func touched(b *batch) []eventstore.Touched {
	var keys []eventstore.Touched
	all := map[*table]bool{} // recorded as a whole in this transaction
	key := make([]change.Value, 0, 8)
	first := 0
	for _, tx := range b.txns {
		everything := func(t *table) {
			if !all[t] {
				all[t] = true
				keys = append(keys, eventstore.Touched{Table: t.touchedName(), At: tx.end})
			}
		}
		for i := range b.ops[first : first+tx.ops] {
			o := &b.ops[first+i]
			switch {
			case o.kind == opTruncate:
				for _, t := range o.truncate.tables {
					everything(t)
				}
				continue
			case !o.table.touches:
				everything(o.table)
				continue
			}
			if o.key != nil {
				keys = append(keys, o.table.touched(o.key, tx.end))
			}
			if o.row != nil && (o.key == nil || o.table.moves(o.key, o.row)) {
				key = append(key[:0], make([]change.Value, len(o.table.key))...)
				o.table.keyOf(key, o.row)
				keys = append(keys, o.table.touched(key, tx.end))
			}
		}
		first += tx.ops
		clear(all)
	}
	return keys
}

func (t *table) touchedName() string { return TouchedTable(t.mapping.Source.Name) }

func (t *table) touched(key []change.Value, at change.LSN) eventstore.Touched {
	var b []byte
	for _, v := range key {
		b = change.AppendFrame(b, v.Data)
	}
	return eventstore.Touched{Table: t.touchedName(), Key: b, At: at}
}
