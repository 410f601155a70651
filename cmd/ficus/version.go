package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases.
var version string

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionText()
			a.line("result", map[string]any{"version": v, "go": runtime.Version()}, fmt.Sprintf("ficus %s (%s %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH))
			return nil
		},
	}
}

// versionText is the linker's word, else the module's, else "devel".
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" && info.Main.Version != "" {
		return info.Main.Version
	}
	return cmp.Or(version, "devel")
}
