package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor times in /proc: USER_HZ, which is 100 wherever Linux runs.
const tick = time.Second / 100

// A Usage is the processor time that a run took: that of the program, and that of the servers it
// made work. Polling by the benchmark is in the servers' figures.
type Usage struct {
	Program, Source, Target time.Duration
}

// usage returns what both clusters have used since they were started.
func (l *Lab) usage() Usage { return Usage{Source: l.Source.cpu(), Target: l.Target.cpu()} }

// cpu returns the processor time of all of the cluster's processes, living and ended.
func (c *Cluster) cpu() time.Duration {
	text, err := os.ReadFile(filepath.Join(c.Dir(), "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	postmaster, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	var sum time.Duration
	for _, path := range all {
		p, err := readStat(path)
		switch {
		case err != nil: // it has ended meanwhile; its parent has its time now
		case p.pid == postmaster:
			sum += p.own + p.reaped
		case p.parent == postmaster:
			sum += p.own + p.reaped
		}
	}
	return sum
}

// stat is what /proc/PID/stat says of one process.
type stat struct {
	pid, parent int
	own         time.Duration // its own
	reaped      time.Duration // of children that have ended
}

// readStat reads one file. The name in brackets may hold blanks and brackets of its own.
// Source: proc(5).
func readStat(path string) (stat, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return stat{}, err
	}
	pid, _, _ := strings.Cut(string(text), " ")
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const parent, utime, stime, cutime, cstime = 1, 11, 12, 13, 14
	if len(fields) <= cstime {
		return stat{}, fmt.Errorf("%s: too short", path)
	}
	number := func(s string) int {
		n, _ := strconv.Atoi(s) // the kernel writes numbers
		return n
	}
	return stat{
		pid: number(pid), parent: number(fields[parent]),
		own:    time.Duration(number(fields[utime])+number(fields[stime])) * tick,
		reaped: time.Duration(number(fields[cutime])+number(fields[cstime])) * tick,
	}, nil
}

// processCPU returns the processor time of one process, 0 when it is gone.
func processCPU(pid int) time.Duration {
	p, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return p.own
}

// peakRSS returns the most memory, in bytes, that a process has had resident since it was started
// (VmHWM), 0 when it is gone. The maximum that wait4 reports will not do: it begins with the memory
// of the process that forked.
func peakRSS(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
