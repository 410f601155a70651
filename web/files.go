package web

import (
	"embed"
	"io/fs"
)

//go:embed index.html style.css app.js icon.svg
var files embed.FS

// FS returns the dashboard's files: index.html and what it asks for, all in the root.
func FS() fs.FS { return files }
