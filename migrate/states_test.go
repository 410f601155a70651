package migrate

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var updateFlag = flag.Bool("update", false, "write docs/states.md anew")

const statesFile = "../docs/states.md"

// TestStatesPage holds docs/states.md against the table that the engine runs.
func TestStatesPage(t *testing.T) {
	t.Parallel()
	want := statesPage()
	if *updateFlag {
		if err := os.WriteFile(statesFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(statesFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/states.md is not what the table of steps says; write it anew: go test ./migrate -run TestStatesPage -update")
	}
}

// TestStepsAreWhole: every row of the table says what it needs, what it does, and how it is recognised as done;
// what clients wait for has a budget, and comes back when it is not the end.
//
// It fails when a row lacks one of these.
func TestStepsAreWhole(t *testing.T) {
	t.Parallel()
	for _, s := range Steps(Settings{}) {
		if s.Needs == "" || s.Does == "" || s.Known == "" {
			t.Errorf("%s %s lacks a word: %+v", s.Phase, s.Name, s)
		}
		if s.Waits && s.Budget == 0 {
			t.Errorf("clients wait for %s without end", s.Name)
		}
	}
}

// phaseNotes says of each phase what a person sees and may do.
func phaseNotes() [][3]string {
	return [][3]string{
		{string(Pending), "nothing was touched yet", "cancel"},
		{string(Preparing), "looks for trouble, installs schema `ficus`, creates the target's tables; a finding of severity error ends it", "pause, cancel"},
		{string(Copying), "rows are copied, then indexes and constraints are built; changes are being stored meanwhile", "pause, cancel"},
		{string(CatchingUp), "the forward link applies what was stored", "resync, pause, cancel"},
		{string(Following), "the target follows the source; with `--until following` for ever", "promote, approve, resync, pause, cancel"},
		{string(Verifying), "everything is compared at one instant; `waiting_for: proof` after differences were found", "promote (compare again), approve, resync, pause, cancel"},
		{string(ReadsSwitched), "read-only traffic moves; `waiting_for` names the gate, `approval` is a person's, `promote` follows a promotion that undid itself for good", "approve, promote, resync, pause, cancel"},
		{string(Promoting), "the owner changes; takes seconds", "cancel, up to the point of no return"},
		{string(Promoted), "the target owns the data, the source follows it over the reverse link; `rollback` says whether going back is safe", "rollback, complete, resync, pause, resume (a stopped reverse link)"},
		{string(RollingBack), "a promotion with the sides swapped", ""},
		{string(RolledBack), "the source owns the data, the target follows it over a fresh forward link", "promote (verifies first), resync, pause, cancel"},
		{string(Completed), "the target owns the data; the source stays fenced until `ficus cleanup`", ""},
		{string(Cancelled), "the source owns the data; the copied tables stay on the target", ""},
		{string(Failed), "an error that no retry mends; the owner takes writes as before, slots keep what changes", "resume (or run again): exactly at the step that failed; resync, where a link was running; cancel, while the source owns"},
	}
}

func statesPage() []byte {
	var b bytes.Buffer
	b.WriteString(`# States of a migration

<!-- Made by the test TestStatesPage of package migrate from the table that the engine runs; change that, not this. -->

A migration is in one phase at a time. The journal remembers it; who may write is never decided by
the journal, but by the ownership rows and gates in the two databases.

` + "```mermaid\nstateDiagram-v2\n    [*] --> pending\n")
	for _, p := range []Phase{CatchingUp, ReadsSwitched, RollingBack, RolledBack} {
		fmt.Fprintf(&b, "    %s: %s\n", node(p), p)
	}
	for _, t := range Transitions() {
		if t.From == Failed || t.To == Failed || t.To == Cancelled {
			continue // see the text below
		}
		fmt.Fprintf(&b, "    %s --> %s", node(t.From), node(t.To))
		if t.Why != "" {
			fmt.Fprintf(&b, ": %s", t.Why)
		}
		b.WriteString("\n")
	}
	b.WriteString("    completed --> [*]\n```\n\n")
	b.WriteString("Not drawn: `cancel` leads from every phase before `promoted`, and from `rolled-back`, to `cancelled`; an error\nthat no retry mends leads to `failed`, and `resume` from there back to where it came from.\n\n")

	b.WriteString("## Phases\n\n| phase | what goes on | what a person may say |\n|---|---|---|\n")
	for _, n := range phaseNotes() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", n[0], n[1], n[2])
	}
	writeSteps(&b)
	b.WriteString(statesProse)
	return b.Bytes()
}

func writeSteps(b *bytes.Buffer) {
	var phase Phase
	for _, s := range Steps(Settings{}) {
		if s.Phase != phase {
			phase = s.Phase
			fmt.Fprintf(b, "\n## Steps: %s\n\n", phase)
			if phase == Promoting {
				fmt.Fprintf(b, "From the owner to the other side; `rolling-back` runs the same rows with the sides swapped. Clients wait during the rows\nmarked *waits*; with the default budgets for at most %s in all, as long as both databases answer. Rows marked **final** lie at or behind the point of no return.\n\n", Stall(Settings{}))
			}
			b.WriteString("| step | needs | does | budget | undone by | recognised as done by |\n|---|---|---|---|---|---|\n")
		}
		name := "`" + s.Name + "`"
		if s.Waits {
			name += " *waits*"
		}
		if s.Final {
			name += " **final**"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", name, s.Needs, s.Does, budgetText(s.Budget), dash(s.Undo), s.Known)
	}
}

func node(p Phase) string { return strings.ReplaceAll(string(p), "-", "_") }

func budgetText(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	if text, ok := strings.CutSuffix(d.String(), "m0s"); ok {
		return text + "m"
	}
	return d.String()
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

const statesProse = `
## The point of no return

It is one row: the new epoch in ` + "`ficus.ownership`" + ` of the new owner. Before it every failure undoes itself; after it every
retry goes forward, whichever process makes it.

| a process died or gave up … | the databases say | the next one |
|---|---|---|
| before ` + "`close-gate`" + ` | the old owner, open | releases clients, drops the prepared slot, goes back to the phase before |
| between ` + "`close-gate`" + ` and ` + "`own`" + ` | the old owner, closed | burns the epoch on the other side, opens the gate, releases clients, goes back |
| in ` + "`own`" + `, reply lost | either | burns the epoch: if that works, the lost commit can never take effect, and it goes back; if the row has the new owner already, it goes forward |
| after ` + "`own`" + ` | the new owner | opens its gate, releases clients, tells the old owner, switches the links |

To *burn* an epoch is to write it into the other side's row for the old owner. The row only moves to higher epochs, and of two
writers of one epoch the first wins, so a commit that is still travelling comes too late. No gate opens before that is decided,
which needs an answer from both databases: when one of them died in that very moment, the other stays fenced until
it answers again (the status says so and the engine goes on asking).

While nothing else goes on, the engine looks every few seconds whether the owner's gate is open, and mends what a lost command
may have closed late, in the same way.

A promotion that undid itself is tried again by itself a few times (setting ` + "`Attempts`" + `), except after differences; then it waits for a
person: ` + "`waiting_for: promote`" + `.

After ` + "`own`" + `, an unreachable router or old owner is asked again for ever, in sight; the new owner takes writes
meanwhile, from the step ` + "`open-gate`" + ` on.
`
