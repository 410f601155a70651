package apply

import (
	"context"
	"errors"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/schema"
)

// A log is the stream that is applied; *eventstore.Stream behind storeLog.
type log interface {
	// Read returns a reader of what follows from.
	Read(from change.LSN) logReader
	// Head returns the end of the newest transaction in the log.
	Head() change.LSN
	// Touch records keys of changed rows; they are durable when it returns.
	Touch(ctx context.Context, keys []eventstore.Touched) error
}

type logReader interface {
	// Pins returns the relation messages that decoding the first chunk needs.
	Pins() ([][]byte, error)
	// Next waits for the next chunk, which nobody changes any more.
	Next(ctx context.Context) (eventstore.Chunk, error)
	// Position returns up to where everything was returned.
	Position() change.LSN
	Close() error
}

type storeLog struct{ stream *eventstore.Stream }

func (l storeLog) Read(from change.LSN) logReader { return l.stream.Read(from) }

func (l storeLog) Head() change.LSN { return l.stream.Head() }

func (l storeLog) Touch(ctx context.Context, keys []eventstore.Touched) error {
	return errors.Join(l.stream.Touches().Add(keys), l.stream.Sync(ctx))
}

// TouchedTable is the name under which touched keys of a source table are recorded.
func TouchedTable(source schema.Name) string { return source.String() }

// TouchedKey returns the columns of a touched key as text, in the order of the mapping's Key. The
// empty key stands for every row of the table: it was truncated, or a change did not say which row
// it hit.
func TouchedKey(key []byte) (columns []string, err error) {
	for len(key) > 0 {
		var v []byte
		if v, key, err = change.NextFrame(key); err != nil {
			return nil, err
		}
		columns = append(columns, string(v))
	}
	return columns, nil
}
