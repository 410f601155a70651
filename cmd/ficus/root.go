package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// The exit statuses that scripts rely on.
const (
	exitDone    = 0
	exitNo      = 1 // the answer is no: differences found, check failed
	exitUsage   = 2
	exitFailed  = 3 // and the message says what to do
	exitWaiting = 4 // for a person: an approval
)

// A statusError ends the program with a status of its own.
type statusError struct {
	status int
	err    error // nil: everything was said already
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// An app is what all commands share: the streams and the global flags.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	json     bool
	dataDir  string
	apiURL   string
	config   string
	logLevel string

	// facts are what the result line of a failed command carries besides its error.
	facts map[string]any

	out struct {
		sync.Mutex      // several goroutines print
		result     bool // the last JSON line was the result
	}
}

// execute runs one command line and returns the exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	// A command line may have been refused before --json was read.
	a.json = a.json || slices.Contains(args, "--json")
	return a.refuse(cmd, err)
}

// refuse says on standard error what went wrong and what to do about it, in two lines. With --json the
// same is the result, so that whoever reads standard output alone is told as well.
func (a *app) refuse(cmd *cobra.Command, err error) int {
	status := exitFailed
	if se, ok := errors.AsType[*statusError](err); ok {
		status = se.status
		if se.err == nil {
			return status
		}
	}
	message, advice := oneLine(err), hint.Of(err)
	switch {
	case advice != "":
	case status == exitUsage:
		advice = "see: " + cmd.CommandPath() + " --help"
	default:
		advice = "more is in the log: --log-level debug"
	}
	fmt.Fprintf(a.stderr, "ficus: %s\nhint: %s\n", message, advice)
	if a.json {
		result := map[string]any{"error": message, "hint": advice, "status": status}
		maps.Copy(result, a.facts)
		a.line("result", result, "")
	}
	return status
}

// fatal ends the process in the middle of whatever it does, which is made for that.
func (a *app) fatal(err error) {
	os.Exit(a.refuse(nil, err))
}

// oneLine is an error's text without the line breaks of errors that were joined.
func oneLine(err error) string {
	lines := slices.DeleteFunc(strings.Split(err.Error(), "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
	return strings.Join(lines, "; ")
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ficus",
		Short: "Move a live PostgreSQL database, and prove that nothing was lost",
		Long: `Ficus moves a live PostgreSQL database to another version, cluster or schema while the
application keeps reading and writing, and proves that nothing was lost.

See it work:        ficus demo
Move a database:    ficus run upgrade --source postgresql://... --target postgresql://...
Go back:            ficus rollback upgrade

Every flag is also an environment variable (FICUS_DATA_DIR for --data-dir) and a key of the file
given with --config (data-dir: ...). A flag wins over the environment, the environment over the file.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          runGroup,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print one JSON object per line")
	f.StringVar(&a.dataDir, "data-dir", ".ficus", "directory for Ficus' state; one process at a time")
	f.StringVar(&a.apiURL, "api", "http://127.0.0.1:7070", "API that the driving commands talk to")
	f.StringVar(&a.config, "config", "", "YAML file with values for flags")
	f.StringVar(&a.logLevel, "log-level", "warn", "what goes to standard error: debug, info, warn or error")
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.fillFlags(cmd) }
	root.AddCommand(
		a.demoCommand(), a.checkCommand(), a.planCommand(), a.runCommand(), a.serveCommand(), a.gatewayCommand(),
		a.statusCommand(), a.watchCommand(), a.evidenceCommand(), a.verifyCommand(), a.copyCommand(), a.followCommand(),
		a.commandsCommand(), a.playbooksCommand(), a.recoverCommand(), a.cleanupCommand(), a.versionCommand(),
	)
	root.AddCommand(a.verbCommands()...)
	root.AddCommand(a.resyncCommand())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Args, c.RunE = cobra.ArbitraryArgs, runGroup
	}
	wrapArgs(root)
	return root
}

// runGroup is what a command does that only holds others: it shows them, and refuses words that it
// does not know.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var known []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			known = append(known, c.Name())
		}
	}
	return usageError(cmd, hint.Suggest(fmt.Errorf("unknown command %q for %s", args[0], cmd.CommandPath()), args[0], known))
}

// flagError suggests the flag that was meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		if best := hint.Nearest(unknown.GetSpecifiedName(), flagNames(cmd)); best != "" {
			err = hint.Wrap(err, "did you mean --%s? see: %s --help", best, cmd.CommandPath())
		}
	}
	return usageError(cmd, err)
}

// wrapArgs makes every complaint about arguments a usage error.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError(cmd, err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		wrapArgs(c)
	}
}

func usageError(cmd *cobra.Command, err error) error {
	return &statusError{exitUsage, hint.Wrap(err, "see: %s --help", cmd.CommandPath())}
}

// fillFlags gives flags that were not set the value of the environment, or of the config file.
func (a *app) fillFlags(cmd *cobra.Command) error {
	if v, ok := os.LookupEnv("FICUS_CONFIG"); ok && a.config == "" {
		a.config = v
	}
	file := map[string]string{}
	if a.config != "" {
		data, err := os.ReadFile(a.config)
		if err != nil {
			return &statusError{exitUsage, hint.Wrap(fmt.Errorf("read the configuration: %w", err), "--config (or FICUS_CONFIG) names a YAML file with values for flags")}
		}
		if err := yaml.Unmarshal(data, &file); err != nil {
			return &statusError{exitUsage, hint.Wrap(fmt.Errorf("read the configuration %s: %w", a.config, err), "it holds one line per flag, such as data-dir: /var/lib/ficus")}
		}
	}
	for key := range file {
		if !knownFlag(cmd.Root(), key) {
			return &statusError{exitUsage, hint.Suggest(fmt.Errorf("configuration %s: unknown key %q", a.config, key), key, flagNames(cmd))}
		}
	}
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || failed != nil || f.Name == "help" {
			return
		}
		v, ok := os.LookupEnv("FICUS_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
		if !ok {
			v, ok = file[f.Name]
		}
		if ok {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				failed = usageError(cmd, fmt.Errorf("%s from the environment or the configuration: %w", f.Name, err))
			}
		}
	})
	return failed
}

// knownFlag reports whether any command has the flag: one file serves them all.
func knownFlag(cmd *cobra.Command, name string) bool {
	if cmd.Flags().Lookup(name) != nil || cmd.PersistentFlags().Lookup(name) != nil {
		return true
	}
	for _, c := range cmd.Commands() {
		if knownFlag(c, name) {
			return true
		}
	}
	return false
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// log returns the logger for standard error.
func (a *app) log() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, &statusError{exitUsage, hint.Wrap(fmt.Errorf("--log-level %q is no level", a.logLevel), "choose debug, info, warn or error")}
	}
	options := &slog.HandlerOptions{Level: level}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.stderr, options)), nil
	}
	return slog.New(slog.NewTextHandler(a.stderr, options)), nil
}
