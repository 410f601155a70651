package httpdoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/itchyny/gojq"
)

// programTime is how long a jq program may run on one payload.
const programTime = time.Second

// A program is jq, compiled. It sees its input alone: no environment, no files.
type program struct{ code *gojq.Code }

func compile(source string) (*program, error) {
	q, err := gojq.Parse(source)
	if err != nil {
		return nil, err
	}
	code, err := gojq.Compile(q)
	if err != nil {
		return nil, err
	}
	return &program{code}, nil
}

// apply returns what the program makes of a value: exactly one value. A nil program changes nothing.
// The error does not show the value.
func (p *program) apply(ctx context.Context, in any) (any, error) {
	if p == nil {
		return in, nil
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	results := p.code.RunWithContext(ctx, in)
	out, ok := results.Next()
	if !ok {
		return nil, errors.New("the jq program made nothing out of it")
	}
	if err, failed := out.(error); failed {
		return nil, masked(err)
	}
	if _, more := results.Next(); more {
		return nil, errors.New("the jq program made more than one value out of it")
	}
	return out, nil
}

// masked keeps values, which jq's errors quote, out of logs.
func masked(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the jq program ran for more than %s", programTime)
	}
	if _, ok := errors.AsType[*gojq.HaltError](err); ok {
		return errors.New("the jq program halted")
	}
	return errors.New("the jq program does not fit it")
}

// applyJSON is apply on JSON. Numbers stay as they are written.
func (p *program) applyJSON(ctx context.Context, in []byte) ([]byte, error) {
	if p == nil {
		return in, nil
	}
	v, err := decode(in)
	if err != nil {
		return nil, err
	}
	if v, err = p.apply(ctx, v); err != nil {
		return nil, err
	}
	return gojq.Marshal(v)
}

// decode reads one JSON value; nothing is null.
func decode(data []byte) (any, error) {
	if len(data) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, errors.New("not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}
