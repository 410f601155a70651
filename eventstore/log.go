package eventstore

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A logger passes Pebble's lines on. Its Fatalf must not return, and panics.
type logger struct{ log *slog.Logger }

func (l logger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.write(slog.LevelDebug, fmt.Sprintf(format, args...))
	}
}

func (l logger) Errorf(format string, args ...any) {
	l.write(slog.LevelError, fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.write(slog.LevelError, text)
	panic("event store: " + text)
}

// diskFull says what an operator can do about a disk without space.
func diskFull(cause error) error {
	return hint.Wrap(fmt.Errorf("event store: the disk of the data directory is full: %w", cause),
		"make room there, or move the data directory to a larger disk, and run the same command again: it goes on where it was; nothing is lost meanwhile, the source keeps its WAL")
}

func (l logger) write(level slog.Level, text string) {
	l.log.LogAttrs(context.Background(), level, "event store engine", slog.String("text", text))
}

// listener reports what an operator should know; the rest of Pebble's events stay silent.
func listener(log *slog.Logger) *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			log.LogAttrs(context.Background(), slog.LevelError, "event store background work failed", slog.Any("err", err))
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) { // whoever reads it gets the error too
			log.LogAttrs(context.Background(), slog.LevelError, "event store data is corrupt", slog.String("file", info.Path))
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			log.LogAttrs(context.Background(), slog.LevelWarn, "event store writes wait for the disk", slog.String("reason", info.Reason))
		},
	}
}
