package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/internal/hint"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2) //nolint:forbidigo // this is main
	case err != nil:
		_, _ = fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		if advice := hint.Of(err); advice != "" {
			_, _ = fmt.Fprintf(os.Stderr, "hint: %s\n", advice)
		}
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// options are what the command line says.
type options struct {
	lab      lab.Config
	ficus    string
	rounds   int
	quick    bool
	only     string
	jsonFile string
	plotFile string
	page     string
	earlier  string
	sizes    sizes
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.ficus, "ficus", "bin/ficus", "the program to measure")
	fs.IntVar(&o.rounds, "rounds", 5, "how often each program runs")
	fs.BoolVar(&o.quick, "quick", false, "small sizes and 2 rounds, where they are not given: to see that everything works")
	fs.StringVar(&o.only, "only", "", "scenarios to run, with commas in between (default: all): "+strings.Join(names(), ","))
	fs.IntVar(&o.lab.SourceVersion, "source-version", 0, "major version of the source (default 15)")
	fs.IntVar(&o.lab.TargetVersion, "target-version", 0, "major version of the target (default 15)")
	fs.StringVar(&o.lab.Dir, "dir", "", "folder for the clusters' files (default: that for temporary files)")
	fs.StringVar(&o.jsonFile, "json", "", "file to write everything to, every run included")
	fs.StringVar(&o.plotFile, "plot", "", "SVG file to draw growth in")
	fs.StringVar(&o.page, "markdown", "", "page to put the tables into, between its two marks")
	fs.StringVar(&o.earlier, "load", "", "run nothing: read what --json wrote, files with commas in between, and write it in the other forms")
	o.sizes.register(fs)
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", fs.Arg(0))
	}
	if o.quick {
		given := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
		o.sizes.shrink(given)
		if !given["rounds"] {
			o.rounds = 2
		}
	}
	return o, nil
}

func names() (all []string) {
	for _, s := range scenarios() {
		all = append(all, s.name())
	}
	return all
}

// chosen returns the scenarios that --only names.
func chosen(only string) ([]scenario, error) {
	if only == "" {
		return scenarios(), nil
	}
	wanted := strings.Split(only, ",")
	for _, name := range wanted {
		if !slices.Contains(names(), name) {
			return nil, hint.Wrap(fmt.Errorf("no scenario %q", name), "there are: %s", strings.Join(names(), ", "))
		}
	}
	return slices.DeleteFunc(scenarios(), func(s scenario) bool { return !slices.Contains(wanted, s.name()) }), nil
}

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	report := &Report{Time: time.Now().UTC().Truncate(time.Second), Quick: o.quick}
	if o.earlier != "" {
		err = report.load(strings.Split(o.earlier, ","))
	} else {
		err = o.measure(ctx, report, stderr)
	}
	if len(report.Results) == 0 {
		return err
	}
	err = errors.Join(err, report.writeText(stdout), writeFile(o.jsonFile, report.writeJSON),
		writeFile(o.plotFile, func(w io.Writer) error { return writePlot(w, report.Results) }))
	if o.page != "" {
		err = errors.Join(err, report.updatePage(o.page))
	}
	return err
}

// measure runs the scenarios that were asked for. One that fails does not keep the others from
// running; what is found is written to the JSON file after each.
func (o *options) measure(ctx context.Context, report *Report, stderr io.Writer) (err error) {
	run, err := chosen(o.only)
	if err != nil {
		return err
	}
	if !executable(o.ficus) {
		return hint.Wrap(fmt.Errorf("there is no program %s", o.ficus), "make build, or --ficus PATH")
	}
	b := &bench{ficus: o.ficus, rounds: o.rounds, size: o.sizes, log: slog.New(slog.NewTextHandler(stderr, nil))}
	if b.Lab, err = lab.New(ctx, o.lab); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(context.WithoutCancel(ctx))) }()
	if b.tools, err = findTools(b.Target.Install().Bin); err != nil {
		return err
	}
	report.Machine, report.Settings = describe(ctx, b), b.SettingsText()
	var failed []error
	for _, s := range run {
		before := load()
		results, err := s.run(ctx, b)
		for _, r := range results {
			r.Load = [2]string{before, load()}
		}
		report.Results = append(report.Results, results...)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name(), err))
			report.Failures = append(report.Failures, failed[len(failed)-1].Error())
			b.say(ctx, "%v", failed[len(failed)-1])
		}
		if err := writeFile(o.jsonFile, report.writeJSON); err != nil || ctx.Err() != nil {
			return errors.Join(append(failed, err)...)
		}
	}
	return errors.Join(failed...)
}

// writeFile writes a file when its name is given.
func writeFile(path string, write func(io.Writer) error) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path) //nolint:gosec // the file that the command line names
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
