package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrAltered says that a report is not what was sealed.
var ErrAltered = errors.New("the digest does not belong to the report")

// Seal ends the report with a digest: a chain of SHA-256 that begins with the digest of the report
// before it, goes through everything but the tables, then through each table. Whoever kept the last
// digest elsewhere can tell whether any report of the chain was altered, left out or put in.
func (r *Report) Seal(previous string) error {
	r.Previous, r.Digest = previous, ""
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("seal the report: %w", err)
	}
	r.Digest, _, err = chain(data)
	return err
}

// CheckSeal returns the digest of a report in JSON and that of the one before it, or ErrAltered.
func CheckSeal(data []byte) (digest, previous string, err error) {
	var said struct {
		Digest   string `json:"digest"`
		Previous string `json:"previous"`
	}
	if err := json.Unmarshal(data, &said); err != nil {
		return "", "", fmt.Errorf("read the report: %w", err)
	}
	if said.Digest == "" {
		return "", "", errors.New("the report has no digest")
	}
	digest, _, err = chain(data)
	if err != nil {
		return "", "", err
	}
	if digest != said.Digest {
		return "", "", ErrAltered
	}
	return digest, said.Previous, nil
}

// chain returns the digest of a report in JSON, and how many links it has. Spaces and the order of
// keys do not count, numbers count as they are written.
func chain(data []byte) (digest string, links int, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var head map[string]any
	if err := dec.Decode(&head); err != nil {
		return "", 0, fmt.Errorf("read the report: %w", err)
	}
	tables, ok := head["tables"].([]any)
	if !ok {
		return "", 0, errors.New("read the report: it has no tables")
	}
	previous, _ := head["previous"].(string)
	delete(head, "tables")
	delete(head, "digest")
	sum := []byte(previous)
	for _, link := range append([]any{head}, tables...) {
		part, err := json.Marshal(link) // keys in order
		if err != nil {
			return "", 0, fmt.Errorf("read the report: %w", err)
		}
		h := sha256.Sum256(append(sum, part...))
		sum = h[:]
	}
	return hex.EncodeToString(sum), 1 + len(tables), nil
}
