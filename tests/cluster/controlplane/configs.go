package main

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The users of the API that the rig itself brings along.
const (
	rigUser  = "headway-rig"
	kwokUser = "system:kwok"
)

//go:embed config/*.yaml
var configs embed.FS

// writeConfigs writes the components' configuration files; "DIR/" in them becomes the cluster's directory.
func writeConfigs(at layout) error {
	entries, err := configs.ReadDir("config")
	if err != nil {
		return fmt.Errorf("reading the built-in configuration: %w", err)
	}
	for _, entry := range entries {
		text, err := configs.ReadFile("config/" + entry.Name())
		if err != nil {
			return fmt.Errorf("reading the built-in configuration: %w", err)
		}
		path := at.config(entry.Name())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("creating %s: %w", filepath.Dir(path), err)
		}
		filled := strings.ReplaceAll(string(text), "DIR/", at.dir+"/")
		if err := os.WriteFile(path, []byte(filled), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}
