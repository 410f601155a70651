package change

// A ValueKind says in which form a column value came.
type ValueKind uint8

// The forms of a column value in a pgoutput tuple ('n', 'u', 't', 'b').
const (
	Null      ValueKind = iota
	Unchanged           // a TOASTed value that the update did not touch: it is not in the stream
	Text                // the type's text form, in the client encoding
	Binary              // the type's send() form
)

// String returns the kind as a word.
func (k ValueKind) String() string {
	switch k {
	case Null:
		return "null"
	case Unchanged:
		return "unchanged"
	case Text:
		return "text"
	case Binary:
		return "binary"
	}
	return "invalid"
}

// A Value is one column of one row image. Data is nil for Null and Unchanged.
type Value struct {
	Kind ValueKind
	Data []byte
}

// A Tuple is a row image: one value per published column, in the relation's order.
type Tuple []Value

// An Op says what happened to a row.
type Op uint8

// The row operations.
const (
	Insert Op = iota + 1
	Update
	Delete
)

// String returns the operation as a word.
func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return "invalid"
}

// A Column is one published column of a relation.
type Column struct {
	Name     string
	TypeOID  uint32
	TypeMod  int32
	Identity bool // part of the replica identity
}

// A Relation is a table as the stream describes it at one point.
type Relation struct {
	ID              uint32
	Namespace, Name string
	ReplicaIdentity byte // 'd' default, 'n' nothing, 'f' full, 'i' index
	Columns         []Column
}

// A Row is one change of one row.
//
// Insert has New. Delete has Old. Update has New, and Old when the identity changed or the
// identity is FULL. When OldIsKey, only the identity columns of Old are meaningful and the others
// are Null; otherwise Old is the whole row before the change.
type Row struct {
	Op       Op
	Rel      *Relation
	Old, New Tuple
	OldIsKey bool
}
