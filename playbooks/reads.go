package playbooks

import "fmt"

// Reads tunes the gateway's read-only door.
type Reads struct {
	By           string   `yaml:"by" json:"by,omitempty" jsonschema:"description=What promote.reads counts; default session,enum=session,enum=transaction"`
	Users        []string `yaml:"users" json:"users,omitempty" jsonschema:"description=Users whose sessions go through the read-only door whichever they come to; a name may end in *"`
	Applications []string `yaml:"applications" json:"applications,omitempty" jsonschema:"description=The same by application_name"`
	YourWrites   string   `yaml:"your_writes" json:"your_writes,omitempty" jsonschema:"description=A read whose user has written what the follower has not applied. no: is read without it (default); owner: is read on the owner; wait: waits up to max_wait and is then read on the owner,enum=no,enum=owner,enum=wait"`
	MaxWait      Duration `yaml:"max_wait" json:"max_wait,omitempty" jsonschema:"description=Default 500ms"`

	MaxErrors     float64 `yaml:"max_errors" json:"max_errors,omitempty" jsonschema:"description=Reads step back when a share of them that is higher by this fails there than on the owner; default 0.01; negative: not looked at"`
	MaxSlower     float64 `yaml:"max_slower" json:"max_slower,omitempty" jsonschema:"description=Reads step back when their 95th percentile is more than this many times the owner's; default 5; negative: not looked at"`
	MaxMismatches float64 `yaml:"max_mismatches" json:"max_mismatches,omitempty" jsonschema:"description=Reads step back when more than this share of shadow reads is answered otherwise; default 0.001; negative: not looked at"`
	MinReads      int     `yaml:"min_reads" json:"min_reads,omitempty" jsonschema:"description=How many reads it takes to tell; default 100"`
}

// Shadow runs a share of the reads on both databases and compares the answers.
type Shadow struct {
	Share   float64  `yaml:"share" json:"share,omitempty" jsonschema:"description=Of the reads that the owner answers on the read-only door: 0 (default) to 1"`
	Workers int      `yaml:"workers" json:"workers,omitempty" jsonschema:"description=How many are run at once; default 2"`
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema:"description=Longest time for one; default 5s"`
	Ignore  []string `yaml:"ignore" json:"ignore,omitempty" jsonschema:"description=Columns of results that are not compared"`
	Floats  float64  `yaml:"floats" json:"floats,omitempty" jsonschema:"description=By how much floating point numbers may differ relative to their size; default 1e-9"`
}

// ShadowGate demands that shadow reads agree.
type ShadowGate struct {
	Min           int64   `yaml:"min" json:"min,omitempty" jsonschema:"description=How many reads must have been compared; 0: no gate"`
	MaxMismatches float64 `yaml:"max_mismatches" json:"max_mismatches,omitempty" jsonschema:"description=Which share of them may have been answered otherwise; default 0"`
}

// badReads says what is wrong with how reads are led and compared, or "".
func (p *Playbook) badReads() string {
	r, sh := p.Router.Reads, p.Router.Shadow
	switch {
	case r.By != "" && r.By != "session" && r.By != "transaction":
		return fmt.Sprintf("router.reads.by is %q: want session or transaction", r.By)
	case r.YourWrites != "" && r.YourWrites != "no" && r.YourWrites != "owner" && r.YourWrites != "wait":
		return fmt.Sprintf("router.reads.your_writes is %q: want no, owner or wait", r.YourWrites)
	case sh.Share < 0 || sh.Share > 1:
		return fmt.Sprintf("router.shadow.share is %g: want 0 to 1", sh.Share)
	case p.Gates.Shadow.Min < 0 || p.Gates.Shadow.MaxMismatches < 0:
		return "gates.shadow: a number is negative"
	case p.Gates.Shadow.Min > 0 && sh.Share == 0:
		return "gates.shadow needs shadow reads: router.shadow.share"
	case p.Router.Type != "gateway" && (sh.Share > 0 || r.By != "" || r.YourWrites != "" || len(r.Users)+len(r.Applications) > 0):
		return "router.reads and router.shadow go with router.type: gateway"
	}
	return ""
}
