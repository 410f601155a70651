package playbooks

import (
	"fmt"
	"slices"
)

// Throttle says when copy and link stand back.
type Throttle struct {
	ReplicaLag Duration `yaml:"replica_lag" json:"replica_lag,omitempty" jsonschema:"description=How far behind a physical standby of either database may replay; default not looked at"`
	MaxActive  int      `yaml:"max_active" json:"max_active,omitempty" jsonschema:"description=How many sessions of others may run statements on either server; default not looked at"`
	Queries    []Brake  `yaml:"queries" json:"queries,omitempty" jsonschema:"description=Conditions of your own"`
}

// A Brake is a condition of the operator's own under which copy and link stand back.
type Brake struct {
	Name string `yaml:"name" json:"name" jsonschema:"required,description=Name of the reason"`
	SQL  string `yaml:"sql" json:"sql" jsonschema:"required,description=A query whose first column is a boolean: false throttles; a second column is shown as the reason"`
	On   string `yaml:"on" json:"on,omitempty" jsonschema:"description=Which database is asked; default source,enum=source,enum=target"`
}

// badThrottle says what is wrong with the throttle, or "".
func (p *Playbook) badThrottle() string {
	t := p.Slow
	if t.MaxActive < 0 || t.ReplicaLag < 0 {
		return "throttle: a limit is negative"
	}
	names := map[string]bool{"operator": true, "replica-lag": true, "load": true}
	for _, q := range t.Queries {
		if q.Name == "" || q.SQL == "" || names[q.Name] {
			return fmt.Sprintf("throttle.queries: %q needs a name that is not taken, and sql", q.Name)
		}
		names[q.Name] = true
		if q.On != "" && q.On != "source" && q.On != "target" {
			return fmt.Sprintf("throttle.queries: %s asks %q: want source or target", q.Name, q.On)
		}
	}
	return ""
}

// Approvals says whose consent the promotion needs.
type Approvals struct {
	Need  int      `yaml:"need" json:"need,omitempty" jsonschema:"description=How many people approve; default 1"`
	Of    []string `yaml:"of" json:"of,omitempty" jsonschema:"description=Names of the API tokens whose approval counts; default everybody with the role approver"`
	Valid Duration `yaml:"valid" json:"valid,omitempty" jsonschema:"description=How long an approval counts; default until the promotion"`
}

// A Window is when a promotion may begin.
type Window struct {
	Cron string   `yaml:"cron" json:"cron,omitempty" jsonschema:"description=When it opens: minute hour day month weekday; CRON_TZ=Europe/Berlin in front sets the time zone"`
	For  Duration `yaml:"for" json:"for,omitempty" jsonschema:"description=How long it stays open"`
}

// A Check is a condition of the operator's own. One of SQL, HTTP and Command.
type Check struct {
	Name    string   `yaml:"name" json:"name" jsonschema:"required,description=Name of the gate"`
	Before  string   `yaml:"before" json:"before,omitempty" jsonschema:"description=The phase it guards; default promoting,enum=following,enum=verifying,enum=promoting"`
	SQL     string   `yaml:"sql" json:"sql,omitempty" jsonschema:"description=A query whose first column is a boolean; a second column is shown"`
	On      string   `yaml:"on" json:"on,omitempty" jsonschema:"description=Which database is asked; default source,enum=source,enum=target"`
	HTTP    string   `yaml:"http" json:"http,omitempty" jsonschema:"description=An address that answers with a status from 200 to 299"`
	Command []string `yaml:"command" json:"command,omitempty" jsonschema:"description=A program and its arguments that ends with status 0"`
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema:"description=How long it may take; default 10s"`
}

// A Hook runs before or after a phase. One of Before and After and one of Command and HTTP.
type Hook struct {
	Name    string   `yaml:"name" json:"name" jsonschema:"required,description=Name of the hook"`
	Before  string   `yaml:"before" json:"before,omitempty" jsonschema:"description=The phase it runs before and may refuse"`
	After   string   `yaml:"after" json:"after,omitempty" jsonschema:"description=The phase it runs after"`
	Command []string `yaml:"command" json:"command,omitempty" jsonschema:"description=A program and its arguments; a status other than 0 refuses the phase"`
	HTTP    string   `yaml:"http" json:"http,omitempty" jsonschema:"description=An address that gets a POST with JSON; an answer other than 2xx refuses the phase"`
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema:"description=How long it may take; default 30s"`
}

// A Notice tells people. One of Slack and HTTP.
type Notice struct {
	Slack string   `yaml:"slack" json:"slack,omitempty" jsonschema:"description=Address of an incoming webhook of Slack or what is compatible with it"`
	HTTP  string   `yaml:"http" json:"http,omitempty" jsonschema:"description=An address that gets a POST with JSON"`
	On    []string `yaml:"on" json:"on,omitempty" jsonschema:"description=Phases; approval; warning. Default all of them"`
}

// phases are those that a hook can stand before or after, in order.
func phases() []string {
	return []string{
		"preparing", "copying", "catching-up", "following", "verifying", "reads-switched", "promoting", "promoted",
		"rolling-back", "rolled-back", "completed", "cancelled", "failed",
	}
}

// refusable are the phases that a hook before them can refuse.
func refusable() []string {
	return []string{"copying", "catching-up", "following", "verifying", "reads-switched", "promoting", "rolling-back"}
}

// badGates says what is wrong with gates, hooks and notices, or "".
func (p *Playbook) badGates() string {
	g := p.Gates
	switch {
	case g.Approvals.Need < 0 || len(g.Approvals.Of) > 0 && g.Approvals.Need > len(g.Approvals.Of):
		return "gates.approvals: need is more than there are people, or negative"
	case (g.Window.Cron == "") != (g.Window.For == 0):
		return "gates.window: it needs cron and for"
	}
	names := map[string]bool{"lag": true, "proof": true, "approval": true, "hook": true, "window": true, "transactions": true, "wal-room": true, "disk": true, "shadow": true}
	for _, c := range g.Checks {
		if c.Name == "" || names[c.Name] {
			return fmt.Sprintf("gates.checks: the name %q is missing or taken", c.Name)
		}
		names[c.Name] = true
		if one(c.SQL != "", c.HTTP != "", len(c.Command) > 0) != 1 {
			return fmt.Sprintf("gates.checks: %s needs one of sql, http and command", c.Name)
		}
		if c.Before != "" && !slices.Contains([]string{"following", "verifying", "promoting"}, c.Before) {
			return fmt.Sprintf("gates.checks: %s stands before %q: want following, verifying or promoting", c.Name, c.Before)
		}
		if c.On != "" && c.On != "source" && c.On != "target" {
			return fmt.Sprintf("gates.checks: %s asks %q: want source or target", c.Name, c.On)
		}
	}
	for _, h := range p.Hooks {
		switch {
		case h.Name == "" || one(h.Before != "", h.After != "") != 1 || one(h.HTTP != "", len(h.Command) > 0) != 1:
			return fmt.Sprintf("hooks: %q needs a name, one of before and after, and one of command and http", h.Name)
		case h.Before != "" && !slices.Contains(refusable(), h.Before):
			return fmt.Sprintf("hooks: %s stands before %q: want one of %v", h.Name, h.Before, refusable())
		case h.After != "" && !slices.Contains(phases(), h.After):
			return fmt.Sprintf("hooks: %s comes after %q: want one of %v", h.Name, h.After, phases())
		}
	}
	for _, n := range p.Notify {
		if one(n.Slack != "", n.HTTP != "") != 1 {
			return "notify: each needs one of slack and http"
		}
		for _, on := range n.On {
			if on != "approval" && on != "warning" && !slices.Contains(phases(), on) {
				return fmt.Sprintf("notify: on %q: want approval, warning or one of %v", on, phases())
			}
		}
	}
	return ""
}

// one counts what is given.
func one(given ...bool) int {
	n := 0
	for _, g := range given {
		if g {
			n++
		}
	}
	return n
}
