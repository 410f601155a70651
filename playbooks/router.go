package playbooks

import (
	"fmt"
	"slices"
	"strings"
)

// A Bouncer is one PgBouncer of router.type pgbouncer. One of File and Command.
type Bouncer struct {
	Admin    string   `yaml:"admin" json:"admin" jsonschema:"required,description=Connection string of its console: a user of admin_users and database pgbouncer"`
	Database string   `yaml:"database" json:"database" jsonschema:"required,description=Name in its [databases] that clients connect to"`
	Reads    string   `yaml:"reads" json:"reads,omitempty" jsonschema:"description=Name in its [databases] that read-only clients connect to; default none"`
	File     string   `yaml:"file" json:"file,omitempty" jsonschema:"description=The file in which these names stand: pgbouncer.ini or one that it includes"`
	Command  []string `yaml:"command" json:"command,omitempty" jsonschema:"description=A program and its arguments that changes that file where it is on another machine"`
}

// RouterHooks are what router.type hooks calls.
type RouterHooks struct {
	Hold    *RouterHook `yaml:"hold" json:"hold,omitempty" jsonschema:"description=Returns once clients wait and transactions in flight have ended; default nobody is held"`
	Release *RouterHook `yaml:"release" json:"release,omitempty" jsonschema:"description=Leads clients to the owner and lets them go on"`
	Reads   *RouterHook `yaml:"reads" json:"reads,omitempty" jsonschema:"description=Sends a percentage of reads to the side that does not own; default reads stay on the owner"`
}

// A RouterHook is a command or a webhook. One of Command and HTTP.
type RouterHook struct {
	Command []string `yaml:"command" json:"command,omitempty" jsonschema:"description=A program and its arguments; a status other than 0 refuses"`
	HTTP    string   `yaml:"http" json:"http,omitempty" jsonschema:"description=An address that gets a POST with JSON; an answer other than 2xx refuses"`
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty" jsonschema:"description=How long it may take; default 30s"`
}

// badRouter says what is wrong with the router, or "".
func (p *Playbook) badRouter() string {
	r := p.Router
	types := []string{"gateway", "http", "pgbouncer", "hooks", "none"}
	switch {
	case !slices.Contains(types, r.Type):
		return fmt.Sprintf("router.type is %q: want %s", r.Type, strings.Join(types[:4], ", ")+" or none")
	case r.Type != "gateway" && len(r.Control) > 0:
		return "router.control goes with router.type: gateway"
	case r.Type != "gateway" && (r.AuthQuery != "" || r.TLS != RouterTLS{}):
		return "router.tls and router.auth_query go with router.type: gateway"
	case len(r.Control) > 0 && (r.AuthQuery != "" || r.Users != "" || r.TLS != RouterTLS{}):
		return "router.users, auth_query and tls are those of the gateway that router.control names: give them to ficus gateway"
	case (r.TLS.Cert == "") != (r.TLS.Key == "") || r.TLS.Cert == "" && r.TLS != RouterTLS{}:
		return "router.tls needs both cert and key"
	case r.Database != "" && len(r.Control) == 0:
		return "router.database goes with router.control"
	case (r.Type == "pgbouncer") != (len(r.PgBouncers) > 0):
		return "router.pgbouncers goes with router.type: pgbouncer, and at least one is needed there"
	case (r.Type == "hooks") != (r.Hooks != RouterHooks{}):
		return "router.hooks goes with router.type: hooks, and release is needed there"
	case r.Type == "hooks" && r.Hooks.Release == nil:
		return "router.hooks: release is missing: nothing would lead clients to the owner"
	}
	if why := r.badHTTP(); why != "" {
		return why
	}
	for _, b := range r.PgBouncers {
		switch {
		case b.Admin == "" || b.Database == "":
			return "router.pgbouncers: each needs admin and database"
		case one(b.File != "", len(b.Command) > 0) != 1:
			return fmt.Sprintf("router.pgbouncers: %s needs one of file and command", b.Database)
		case b.Reads == b.Database:
			return fmt.Sprintf("router.pgbouncers: reads of %s need a name of their own", b.Database)
		}
	}
	for name, h := range map[string]*RouterHook{"hold": r.Hooks.Hold, "release": r.Hooks.Release, "reads": r.Hooks.Reads} {
		if h != nil && one(h.HTTP != "", len(h.Command) > 0) != 1 {
			return fmt.Sprintf("router.hooks: %s needs one of command and http", name)
		}
	}
	return ""
}
