package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/migrate"
)

// evidence is all that is on record of a migration, in one file: where it stands, with gates, proofs, promotions,
// their LSNs and timings, and the journal, who asked for what included. It holds no row values and no passwords.
type evidence struct {
	Made    time.Time      `json:"made"`
	Program string         `json:"program"`
	Status  migrate.Status `json:"status"`
	Journal []sealed       `json:"journal"`
	Digest  string         `json:"digest"` // of the last record
}

// A sealed record is one record of the journal. Its digest covers the digest before it, so that none can be changed, left out
// or put in later without changing all that follow.
type sealed struct {
	Event  migrate.Event `json:"event"`
	Digest string        `json:"digest"`
}

// chain links events, the first one to an empty digest.
func chain(events []migrate.Event) ([]sealed, error) {
	links := make([]sealed, len(events))
	before := ""
	for i, e := range events {
		data, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", e.Seq, err)
		}
		sum := sha256.Sum256(append([]byte(before), data...))
		before = hex.EncodeToString(sum[:])
		links[i] = sealed{Event: e, Digest: before}
	}
	return links, nil
}

func (a *app) evidenceCommand() *cobra.Command {
	var token, output string
	cmd := &cobra.Command{
		Use:   "evidence NAME",
		Short: "Write all that is on record of a migration into one file",
		Long: `Write all that is on record of a migration into one JSON file: its state with gates, proofs, promotions, LSNs and
timings, and its journal with who asked for what. Each record of the journal has a SHA-256 digest over
its own JSON and the digest before it. No row values and no passwords.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			e, err := gather(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			data, err := json.MarshalIndent(e, "", "  ")
			if err != nil {
				return err
			}
			if output == "" {
				output = args[0] + "-evidence.json"
			}
			if err := os.WriteFile(output, append(data, '\n'), 0o600); err != nil {
				return fmt.Errorf("write the evidence: %w", err)
			}
			a.line("result", map[string]any{"name": args[0], "file": output, "records": len(e.Journal), "digest": e.Digest},
				fmt.Sprintf("%s: %d records in %s, digest %s", args[0], len(e.Journal), output, e.Digest))
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default NAME-evidence.json)")
	tokenFlag(cmd, &token)
	return cmd
}

// gather reads a migration's state, and its journal up to there.
func gather(ctx context.Context, c *api.Client, name string) (*evidence, error) {
	s, err := c.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	var events []migrate.Event
	for e, err := range c.Events(ctx, name, 0) {
		if err != nil {
			return nil, err
		}
		if e.Seq == 0 {
			continue // passing
		}
		events = append(events, e)
		if e.Seq >= s.Seq {
			break
		}
	}
	links, err := chain(events)
	if err != nil {
		return nil, err
	}
	out := &evidence{Made: time.Now().UTC(), Program: "ficus " + versionText(), Status: s, Journal: links}
	if len(links) > 0 {
		out.Digest = links[len(links)-1].Digest
	}
	return out, nil
}
