package ddl_test

import (
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
