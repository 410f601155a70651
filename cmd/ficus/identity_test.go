package main

import (
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestPartitionWithoutIdentity: the application's update of a partition that has REPLICA IDENTITY
// NOTHING works while its root is followed, and arrives. It fails when only the root's identity is looked at.
func TestPartitionWithoutIdentity(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p DEFAULT;
		ALTER TABLE public.p1 REPLICA IDENTITY NOTHING; INSERT INTO public.p VALUES (1, 1), (2, 2)`)
	run := ficus(t, t.TempDir(), "follow", "--source", source.URL, "--target", target.URL)
	run.line("phase", map[string]any{"phase": "following"})
	source.Exec(t, `UPDATE public.p SET v = 10 WHERE id = 1; DELETE FROM public.p WHERE id = 2`)
	pgtest.Eventually(t, "the changes", func() bool { return fmt.Sprint(target.Strings(t, `SELECT id, v FROM public.p`)) == "[1|10]" })
}
