// Package web is the dashboard: one page, one style sheet, one script and an icon, written by hand,
// without a build step and without anything from another host.
//
// The page talks to the API that serves it (package api) and knows nothing else. It works under a
// Content-Security-Policy that forbids inline scripts and styles. api.Config takes the files.
package web
