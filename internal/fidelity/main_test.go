package fidelity

import (
	"flag"
	"os"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

var update = flag.Bool("update", false, "write docs/fidelity.md anew")

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

// long reports whether the long forms are wanted.
func long() bool { return os.Getenv("FICUS_TEST_LONG") != "" }
