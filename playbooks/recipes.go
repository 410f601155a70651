package playbooks

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
)

//go:embed recipes/*.yaml
var recipes embed.FS

// Recipes lists the embedded playbooks' names, sorted.
func Recipes() []string {
	entries, err := recipes.ReadDir("recipes")
	if err != nil {
		return nil // the directory is part of the binary
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".yaml")
	}
	slices.Sort(names)
	return names
}

// Recipe returns the text of an embedded playbook.
func Recipe(name string) ([]byte, error) {
	data, err := recipes.ReadFile(path.Join("recipes", name+".yaml"))
	if err != nil {
		err := fmt.Errorf("no embedded playbook %q (one of your own is given with -f FILE)", name)
		return nil, hint.Suggest(err, name, Recipes())
	}
	return data, nil
}
