package playbooks

import (
	"fmt"
	"slices"
)

// An HTTPDoor is what router.type http stands in front of: two data servers.
type HTTPDoor struct {
	Listen   string        `yaml:"listen" json:"listen,omitempty" jsonschema:"description=Address of the door; default 127.0.0.1:7480"`
	TLSCert  string        `yaml:"tls_cert" json:"tls_cert,omitempty" jsonschema:"description=Certificate of the door (PEM); default no TLS"`
	TLSKey   string        `yaml:"tls_key" json:"tls_key,omitempty" jsonschema:"description=Key of the certificate (PEM)"`
	Source   string        `yaml:"source" json:"source" jsonschema:"required,description=Address of the data server over the source"`
	Target   string        `yaml:"target" json:"target" jsonschema:"required,description=Address of the data server over the target"`
	Sticky   string        `yaml:"sticky" json:"sticky,omitempty" jsonschema:"description=What tells users apart as cookie:NAME or header:NAME: all reads of one then go the same way; default each goes its own"`
	HoldWait Duration      `yaml:"hold_wait" json:"hold_wait,omitempty" jsonschema:"description=How long a write waits at a switch until it gets 503; default 30s"`
	Routes   []HTTPRoute   `yaml:"routes" json:"routes,omitempty" jsonschema:"description=What is special about some requests"`
	Commands *HTTPCommands `yaml:"commands" json:"commands,omitempty" jsonschema:"description=Commands are taken at the door; default they are not"`
}

// An HTTPRoute is a rule for the requests that a pattern matches.
type HTTPRoute struct {
	Match  string   `yaml:"match" json:"match" jsonschema:"required,description=Pattern such as /orders/ or GET /orders/{id}; the most special one counts"`
	Kind   string   `yaml:"kind" json:"kind,omitempty" jsonschema:"description=read or write; default by the method,enum=read,enum=write"`
	Reads  *int     `yaml:"reads" json:"reads,omitempty" jsonschema:"description=Highest percentage of its reads that move to the target before the switch; default 100"`
	Shadow int      `yaml:"shadow" json:"shadow,omitempty" jsonschema:"description=Percentage of its reads that are made on both data servers and compared; default 0"`
	Ignore []string `yaml:"ignore" json:"ignore,omitempty" jsonschema:"description=jq paths that the comparison leaves out such as .updated_at"`
}

// HTTPCommands say how commands are taken and sent.
type HTTPCommands struct {
	Path        string                 `yaml:"path" json:"path,omitempty" jsonschema:"description=Where they are posted; default /v1/commands"`
	Tokens      string                 `yaml:"tokens" json:"tokens,omitempty" jsonschema:"description=File with one token per line that clients send as bearer; needed on any address but loopback"`
	Types       map[string]HTTPCommand `yaml:"types" json:"types,omitempty" jsonschema:"description=Commands that are taken by type; default all"`
	MaxCommands int                    `yaml:"max_commands" json:"max_commands,omitempty" jsonschema:"description=How many may wait; default 100000"`
	MaxBytes    Bytes                  `yaml:"max_bytes" json:"max_bytes,omitempty" jsonschema:"description=How much commands and kept answers may take on disk; default 1GB"`
	MaxPayload  Bytes                  `yaml:"max_payload" json:"max_payload,omitempty" jsonschema:"description=Size of the largest command; default 1MB"`
	Parallel    int                    `yaml:"parallel" json:"parallel,omitempty" jsonschema:"description=How many are at the data server at a time; default 32"`
	Timeout     Duration               `yaml:"timeout" json:"timeout,omitempty" jsonschema:"description=Longest wait for one answer of the data server; default 10s"`
	Attempts    int                    `yaml:"attempts" json:"attempts,omitempty" jsonschema:"description=How often the data server may fail at a command until it is dead; default 10"`
	GiveUp      Duration               `yaml:"give_up" json:"give_up,omitempty" jsonschema:"description=How long a command is tried until it is dead; default 24h"`
	Keep        Duration               `yaml:"keep" json:"keep,omitempty" jsonschema:"description=How long answers are kept; default 24h"`
	OnDead      string                 `yaml:"on_dead" json:"on_dead,omitempty" jsonschema:"description=What becomes of the commands behind a dead one of the same order. stop: they wait (default); skip: they go on,enum=stop,enum=skip"`
}

// An HTTPCommand says how commands of a type are sent.
type HTTPCommand struct {
	Source HTTPCall `yaml:"source" json:"source,omitzero" jsonschema:"description=To the data server over the source"`
	Target HTTPCall `yaml:"target" json:"target,omitzero" jsonschema:"description=To the data server over the target"`
}

// An HTTPCall is how a data server wants a command.
type HTTPCall struct {
	Method  string `yaml:"method" json:"method,omitempty" jsonschema:"description=POST (default) or PUT or PATCH or DELETE"`
	Path    string `yaml:"path" json:"path,omitempty" jsonschema:"description=Default /commands/ and the type"`
	Payload string `yaml:"payload" json:"payload,omitempty" jsonschema:"description=jq program that makes the body out of the payload; default as it is"`
	Answer  string `yaml:"answer" json:"answer,omitempty" jsonschema:"description=jq program that makes the client's answer out of the data server's; default as it is"`
}

// badHTTP says what types alone do not tell of router.http, or "". The door looks at the rest.
func (r *Router) badHTTP() string {
	h := r.HTTP
	switch {
	case (r.Type == "http") != (h != nil):
		return "router.http goes with router.type: http, and is needed there"
	case h == nil:
		return ""
	case h.Source == "" || h.Target == "":
		return "router.http: source and target are the addresses of both data servers"
	}
	for _, rt := range h.Routes {
		if rt.Reads != nil && (*rt.Reads < 0 || *rt.Reads > 100) {
			return fmt.Sprintf("router.http: route %s: reads is no percentage", rt.Match)
		}
	}
	if c := h.Commands; c != nil && !slices.Contains([]string{"", "stop", "skip"}, c.OnDead) {
		return fmt.Sprintf("router.http.commands.on_dead is %q: want stop or skip", c.OnDead)
	}
	return ""
}
