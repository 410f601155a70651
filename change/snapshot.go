package change

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// firstNormalXID is the first transaction id that a transaction can have; those below mark rows that
// everybody sees. Source: PostgreSQL, access/transam.h.
const firstNormalXID = 3

// A Snapshot says which transactions' changes a query sees, as PostgreSQL's type pg_snapshot does.
// The zero Snapshot sees nothing.
//
//	below xmin: ended          [xmin, xmax): ended, but for those in xip          from xmax on: not yet
//
// It knows top-level transactions alone: savepoints have ids of their own, which are not in xip.
// Source: PostgreSQL manual, "Transaction ID and Snapshot Information Functions".
type Snapshot struct {
	xmin, xmax uint64 // with epoch
	xip        []uint64
}

// ParseSnapshot reads PostgreSQL's text form, "xmin:xmax:xip,xip,...".
//
// The snapshot of a slot may have xmin behind xmax, when the newest transactions before it were rolled
// back: decoding moves xmax with commits alone. All before xmin has ended there, too.
func ParseSnapshot(s string) (Snapshot, error) {
	fail := func() (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: want xmin:xmax:xip such as 10:20:12,14", s)
	}
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return fail()
	}
	var sn Snapshot
	var errs [2]error
	sn.xmin, errs[0] = strconv.ParseUint(parts[0], 10, 63)
	sn.xmax, errs[1] = strconv.ParseUint(parts[1], 10, 63)
	if errs[0] != nil || errs[1] != nil || sn.xmin == 0 || sn.xmax == 0 {
		return fail()
	}
	sn.xmax = max(sn.xmin, sn.xmax)
	if parts[2] == "" {
		return sn, nil
	}
	for text := range strings.SplitSeq(parts[2], ",") {
		x, err := strconv.ParseUint(text, 10, 63)
		if err != nil || x < sn.xmin || x >= sn.xmax || len(sn.xip) > 0 && x <= sn.xip[len(sn.xip)-1] {
			return fail()
		}
		sn.xip = append(sn.xip, x)
	}
	return sn, nil
}

// String returns PostgreSQL's text form, "" for the zero Snapshot.
func (s Snapshot) String() string {
	if s.IsZero() {
		return ""
	}
	running := make([]string, len(s.xip))
	for i, x := range s.xip {
		running[i] = strconv.FormatUint(x, 10)
	}
	return fmt.Sprintf("%d:%d:%s", s.xmin, s.xmax, strings.Join(running, ","))
}

// IsZero reports whether s is the zero Snapshot.
func (s Snapshot) IsZero() bool { return s.xmax == 0 }

// Xmin returns the oldest transaction that was running: all before it had ended.
func (s Snapshot) Xmin() uint64 { return s.xmin }

// Xmax returns the first transaction id that had not been given out to one that had ended by then.
func (s Snapshot) Xmax() uint64 { return s.xmax }

// Sees reports whether the snapshot sees what a top-level transaction did. xid is the id as streams
// and rows have it, without epoch: it stands for the one nearest to the snapshot, so an id must not
// be further than 2^31 transactions away.
func (s Snapshot) Sees(xid uint32) bool {
	if s.IsZero() {
		return false
	}
	if xid < firstNormalXID {
		return true
	}
	full := s.widen(xid)
	if full < s.xmin || full >= s.xmax {
		return full < s.xmin
	}
	_, running := slices.BinarySearch(s.xip, full)
	return !running
}

// widen gives an id the epoch with which it is nearest to xmax.
func (s Snapshot) widen(xid uint32) uint64 {
	full := int64(s.xmax) + int64(int32(xid-uint32(s.xmax))) // the distance on the circle of 2^32
	if full < 0 {                                            // before the first epoch there was nothing
		return uint64(xid)
	}
	return uint64(full)
}
