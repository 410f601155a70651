package playbooks

import (
	"time"

	"github.com/ficus-migrate/ficus/transform"
)

// A Playbook is one migration, described. Every field has a default but Name, Source and Target.
type Playbook struct {
	Name        string           `yaml:"name" json:"name" jsonschema:"required,description=Names the migration and everything it makes in a database; lower-case letters and digits and hyphens and underscores"`
	Description string           `yaml:"description" json:"description,omitempty" jsonschema:"description=One sentence for people"`
	Params      map[string]Param `yaml:"params" json:"params,omitempty" jsonschema:"description=Parameters that values refer to as ${name}"`

	Source string `yaml:"source" json:"source" jsonschema:"required,description=Connection string of the database that is moved"`
	Target string `yaml:"target" json:"target" jsonschema:"required,description=Connection string of the database that it is moved to"`

	Select  Select           `yaml:"select" json:"select,omitzero" jsonschema:"description=Which tables are moved; default all"`
	Schema  SchemaCopy       `yaml:"schema" json:"schema,omitzero" jsonschema:"description=How the target's tables are made"`
	Tables  map[string]Table `yaml:"tables" json:"tables,omitempty" jsonschema:"description=Rules by source table (schema.table)"`
	Copy    Copy             `yaml:"copy" json:"copy,omitzero" jsonschema:"description=The initial load"`
	Follow  Follow           `yaml:"follow" json:"follow,omitzero" jsonschema:"description=Following the source's changes"`
	Slow    Throttle         `yaml:"throttle" json:"throttle,omitzero" jsonschema:"description=When copy and link stand back because something else needs the databases more"`
	Gates   Gates            `yaml:"gates" json:"gates,omitzero" jsonschema:"description=Conditions for going on"`
	Promote Promote          `yaml:"promote" json:"promote,omitzero" jsonschema:"description=The change of owner"`
	Hooks   []Hook           `yaml:"hooks" json:"hooks,omitempty" jsonschema:"description=What runs before and after phases"`
	Notify  []Notice         `yaml:"notify" json:"notify,omitempty" jsonschema:"description=Who is told"`
	Router  Router           `yaml:"router" json:"router,omitzero" jsonschema:"description=What leads clients to the owner"`

	Complete Complete `yaml:"complete" json:"complete,omitzero" jsonschema:"description=The end of a promoted migration"`

	RollbackWindow Duration `yaml:"rollback_window" json:"rollback_window,omitempty" jsonschema:"description=How long after a promotion the way back is kept: then the migration completes by itself; default until somebody says complete"`

	Until string `yaml:"until" json:"until,omitempty" jsonschema:"description=The phase to stop at; default promoted,enum=following,enum=verifying,enum=reads-switched,enum=promoted"`
}

// A Param is a value that the person who runs the playbook gives.
type Param struct {
	Description string  `yaml:"description" json:"description,omitempty"`
	Default     *string `yaml:"default" json:"default,omitempty" jsonschema:"description=Without one the parameter must be given"`
}

// Select chooses tables by patterns: "public.*", "public.users", "*.audit_*".
type Select struct {
	Include []string `yaml:"include" json:"include,omitempty"`
	Exclude []string `yaml:"exclude" json:"exclude,omitempty"`
}

// SchemaCopy says how the target's tables come to be.
type SchemaCopy struct {
	Copy   *bool  `yaml:"copy" json:"copy,omitzero" jsonschema:"description=Copy the source's schema with pg_dump; default true. When false every table must be there already"`
	Before string `yaml:"before" json:"before,omitempty" jsonschema:"description=SQL that is run on the target before its tables are made"`
	After  string `yaml:"after" json:"after,omitempty" jsonschema:"description=SQL that is run on the target after the load; indexes for example"`
}

// A Table is the rule for one source table.
type Table struct {
	To      string            `yaml:"to" json:"to,omitempty" jsonschema:"description=Target table (schema.table); default the same name"`
	Where   string            `yaml:"where" json:"where,omitempty" jsonschema:"description=SQL condition over the source's columns: only these rows are moved"`
	Columns map[string]string `yaml:"columns" json:"columns,omitempty" jsonschema:"description=Target column to source column (a rename) or to an SQL expression over source columns"`
	Drop    []string          `yaml:"drop" json:"drop,omitempty" jsonschema:"description=Source columns that are not moved"`
	Create  string            `yaml:"create" json:"create,omitempty" jsonschema:"description=SQL that makes the target table; default derived from the source and the rule"`
	Inverse map[string]string `yaml:"inverse" json:"inverse,omitempty" jsonschema:"description=Source column to SQL expression over target columns; what a rollback needs for computed and dropped columns"`
}

// Copy tunes the initial load.
type Copy struct {
	Workers int   `yaml:"workers" json:"workers,omitempty" jsonschema:"description=Tables or chunks at a time; default as many as the server with fewer cores has"`
	Chunk   Bytes `yaml:"chunk" json:"chunk,omitempty" jsonschema:"description=Size of one chunk of a large table; default by workers and sizes and at most 1GB"`
}

// Follow tunes the stream.
type Follow struct {
	Ack               string    `yaml:"ack" json:"ack,omitempty" jsonschema:"description=stored: the source forgets WAL once it is durable in the event store (default); applied: once it is durable in the target,enum=stored,enum=applied"`
	DDL               string    `yaml:"ddl" json:"ddl,omitempty" jsonschema:"description=What the source's DDL does. stop: the link stops in front of it (default); safe: what is safe is done on the target too and the rest stops the link,enum=stop,enum=safe"`
	FailoverSlot      *bool     `yaml:"failover_slot" json:"failover_slot,omitempty" jsonschema:"description=Make the slot one that standbys of the source keep (PostgreSQL 17 and newer); default where the source has synchronized_standby_slots set"`
	MaxSourceWAL      Bytes     `yaml:"max_source_wal" json:"max_source_wal,omitempty" jsonschema:"description=How much WAL the owner may keep for the slot; default no limit"`
	OnMaxSourceWAL    string    `yaml:"on_max_source_wal" json:"on_max_source_wal,omitempty" jsonschema:"description=What happens when it keeps more. alarm: it is said (default); pause-copy: besides the copy stands still until it is less than four fifths; drop-slot: the slot is dropped and the migration fails,enum=alarm,enum=pause-copy,enum=drop-slot"`
	OnConflict        string    `yaml:"on_conflict" json:"on_conflict,omitempty" jsonschema:"description=What happens with a row that the target refuses because somebody else wrote there. stop: the link stops in front of it (default); source-wins: the target's rows are overruled and each decision is recorded in ficus.conflicts,enum=stop,enum=source-wins"`
	Verify            string    `yaml:"verify" json:"verify,omitempty" jsonschema:"description=Whether all rows are compared again and again while following. no (default); live: gently and for ever with an alarm for rows that differ and for writes of others to the follower,enum=no,enum=live"`
	Workers           int       `yaml:"workers" json:"workers,omitempty" jsonschema:"description=Sessions over which a backlog is written at a time and committed in order; default 1"`
	Sequences         *Duration `yaml:"sequences" json:"sequences,omitempty" jsonschema:"description=How often the follower's sequences are moved to where the owner's stand; default 10s and 0 for never"`
	NoReplicaIdentity bool      `yaml:"no_replica_identity" json:"no_replica_identity,omitempty" jsonschema:"description=Leave tables without a key as they are and move only their inserts"`
}

// Gates are the conditions for going on.
type Gates struct {
	MaxLag     Bytes    `yaml:"max_lag" json:"max_lag,omitempty" jsonschema:"description=WAL not yet applied; default 1MB"`
	MaxLagTime Duration `yaml:"max_lag_time" json:"max_lag_time,omitempty" jsonschema:"description=Age of the newest applied commit; default 5s"`
	ProofAge   Duration `yaml:"proof_age" json:"proof_age,omitempty" jsonschema:"description=How old an exact proof may be at promotion; default 24h"`
	LagWindow  Duration `yaml:"lag_window" json:"lag_window,omitempty" jsonschema:"description=How long the lag must have been within both limits; default 3s"`
	Approval   *bool    `yaml:"approval" json:"approval,omitempty" jsonschema:"description=A person approves the promotion; default true"`

	Approvals         Approvals  `yaml:"approvals" json:"approvals,omitzero" jsonschema:"description=Who approves the promotion"`
	Window            Window     `yaml:"window" json:"window,omitzero" jsonschema:"description=When the promotion may begin; default at any time"`
	MaxTransactionAge Duration   `yaml:"max_transaction_age" json:"max_transaction_age,omitempty" jsonschema:"description=Oldest transaction of others on the owner; default not looked at"`
	MinWALRoom        Bytes      `yaml:"min_wal_room" json:"min_wal_room,omitempty" jsonschema:"description=WAL that each slot may still keep before the server gives it up; default not looked at"`
	MinDisk           Bytes      `yaml:"min_disk" json:"min_disk,omitempty" jsonschema:"description=Room on the file system of the data directory; default not looked at"`
	Shadow            ShadowGate `yaml:"shadow" json:"shadow,omitzero" jsonschema:"description=Shadow reads that must agree before the promotion"`
	Checks            []Check    `yaml:"checks" json:"checks,omitempty" jsonschema:"description=Conditions of your own"`
}

// Promote tunes the change of owner.
type Promote struct {
	Reads       Percentages `yaml:"reads" json:"reads,omitempty" jsonschema:"description=Steps in which read-only traffic moves to the target before the promotion; default 10 50 100"`
	ReadsWatch  Duration    `yaml:"reads_watch" json:"reads_watch,omitempty" jsonschema:"description=How long each step is watched; default 2s"`
	HoldBudget  Duration    `yaml:"hold_budget" json:"hold_budget,omitempty" jsonschema:"description=Longest wait for transactions in flight; default 5s"`
	FenceBudget Duration    `yaml:"fence_budget" json:"fence_budget,omitempty" jsonschema:"description=Longest wait for writers that passed the gate; default 5s"`
	// Blockers and BlockersAfter are about sessions that the closing fence waits for.
	Blockers      string   `yaml:"blockers" json:"blockers,omitempty" jsonschema:"description=What is done with sessions that still write when the fence has closed. wait: nothing (default); cancel: their statements are cancelled; terminate: the sessions are ended,enum=wait,enum=cancel,enum=terminate"`
	BlockersAfter Duration `yaml:"blockers_after" json:"blockers_after,omitempty" jsonschema:"description=How long the fence waits for them first; default 2s"`

	DrainBudget Duration `yaml:"drain_budget" json:"drain_budget,omitempty" jsonschema:"description=Longest wait until the target has seen the last write; default 10s"`
	ProofBudget Duration `yaml:"proof_budget" json:"proof_budget,omitempty" jsonschema:"description=Longest comparison under the fence; default 10s"`
	Headroom    int64    `yaml:"sequence_headroom" json:"sequence_headroom,omitempty" jsonschema:"description=Values that sequences skip at a promotion; default 1000"`
}

// Complete says what becomes of the source in the end.
type Complete struct {
	OldData string `yaml:"old_data" json:"old_data,omitempty" jsonschema:"description=What becomes of the source's tables. keep: they stay where they are and refuse writes until ficus cleanup (default); archive: they are moved into schemas named after the day and nothing of Ficus is left,enum=keep,enum=archive"`
}

// Router says what leads clients to the owner.
type Router struct {
	Type       string `yaml:"type" json:"type,omitempty" jsonschema:"description=gateway (default); http; pgbouncer; hooks; or none: then clients are moved by hand,enum=gateway,enum=http,enum=pgbouncer,enum=hooks,enum=none"`
	Listen     string `yaml:"listen" json:"listen,omitempty" jsonschema:"description=Read-write door; default 127.0.0.1:7432"`
	ReadListen string `yaml:"read_listen" json:"read_listen,omitempty" jsonschema:"description=Read-only door; default the port after listen's"`
	Users      string `yaml:"users" json:"users,omitempty" jsonschema:"description=File with users and their passwords or SCRAM secrets; without one or auth_query only loopback clients are let in"`
	AuthQuery  string `yaml:"auth_query" json:"auth_query,omitempty" jsonschema:"description=Query on the owner for users that the file does not hold; it takes the name as $1 and returns name and secret"`

	TLS RouterTLS `yaml:"tls" json:"tls,omitzero" jsonschema:"description=TLS of the gateway's clients"`

	Control  []string `yaml:"control" json:"control,omitempty" jsonschema:"description=Control sockets of gateways that run as processes of their own (ficus gateway); this migration then opens no doors itself"`
	Database string   `yaml:"database" json:"database,omitempty" jsonschema:"description=Which of the databases behind these gateways is this migration's; needed where they lead to several"`

	Reads      Reads       `yaml:"reads" json:"reads,omitzero" jsonschema:"description=How the gateway leads reads"`
	Shadow     Shadow      `yaml:"shadow" json:"shadow,omitzero" jsonschema:"description=Reads that the gateway runs on both databases to compare the answers"`
	HTTP       *HTTPDoor   `yaml:"http" json:"http,omitempty" jsonschema:"description=The door for applications that talk to a data server over HTTP"`
	PgBouncers []Bouncer   `yaml:"pgbouncers" json:"pgbouncers,omitempty" jsonschema:"description=Every PgBouncer that clients go through"`
	Hooks      RouterHooks `yaml:"hooks" json:"hooks,omitzero" jsonschema:"description=Commands and webhooks that lead clients"`
}

// RouterTLS says how clients of the gateway may encrypt their connections.
type RouterTLS struct {
	Cert     string `yaml:"cert" json:"cert,omitempty" jsonschema:"description=Certificate with its chain (PEM)"`
	Key      string `yaml:"key" json:"key,omitempty" jsonschema:"description=Its key (PEM)"`
	ClientCA string `yaml:"client_ca" json:"client_ca,omitempty" jsonschema:"description=Authorities whose certificates clients must show (PEM); default none is asked for"`
	Required bool   `yaml:"required" json:"required,omitempty" jsonschema:"description=Clients without TLS are refused; default they are let in"`
}

// Rules returns the table rules in transform's terms.
func (p *Playbook) Rules() map[string]transform.Rule {
	rules := make(map[string]transform.Rule, len(p.Tables))
	for name, t := range p.Tables {
		rules[name] = transform.Rule{To: t.To, Where: t.Where, Columns: t.Columns, Drop: t.Drop, Create: t.Create, Inverse: t.Inverse}
	}
	return rules
}

// CopiesSchema reports whether the target's tables are made from the source's.
func (p *Playbook) CopiesSchema() bool { return p.Schema.Copy == nil || *p.Schema.Copy }

// setDefaults fills what the author left out.
func (p *Playbook) setDefaults() {
	def(&p.Until, "promoted")
	def(&p.Follow.Ack, "stored")
	def(&p.Follow.OnConflict, "stop")
	def(&p.Follow.Verify, "no")
	if p.Follow.Sequences == nil {
		p.Follow.Sequences = new(Duration(10 * time.Second))
	}
	def(&p.Follow.DDL, "stop")
	def(&p.Follow.OnMaxSourceWAL, "alarm")
	def(&p.Gates.MaxLag, 1<<20)
	def(&p.Gates.MaxLagTime, Duration(5*time.Second))
	def(&p.Gates.LagWindow, Duration(3*time.Second))
	def(&p.Gates.ProofAge, Duration(24*time.Hour))
	if p.Gates.Approval == nil {
		p.Gates.Approval = new(true)
	}
	if p.Promote.Reads == nil {
		p.Promote.Reads = Percentages{10, 50, 100}
	}
	def(&p.Promote.ReadsWatch, Duration(2*time.Second))
	def(&p.Promote.HoldBudget, Duration(5*time.Second))
	def(&p.Promote.FenceBudget, Duration(5*time.Second))
	def(&p.Promote.Blockers, "wait")
	def(&p.Promote.BlockersAfter, Duration(2*time.Second))
	def(&p.Promote.DrainBudget, Duration(10*time.Second))
	def(&p.Promote.ProofBudget, Duration(10*time.Second))
	def(&p.Promote.Headroom, 1000)
	def(&p.Complete.OldData, "keep")
	def(&p.Router.Type, "gateway")
	def(&p.Router.Listen, "127.0.0.1:7432")
	if p.Router.HTTP != nil {
		def(&p.Router.HTTP.Listen, "127.0.0.1:7480")
	}
}

// def sets a zero value to its default.
func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
