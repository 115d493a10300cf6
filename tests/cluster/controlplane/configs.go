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
	dnsUser  = "headway-dns"
)

//go:embed config
var configs embed.FS

// writeConfigs writes the components' configuration files; "DIR/" in them becomes the cluster's directory.
func writeConfigs(at layout) error {
	return writeConfigFolder(at, "config", strings.NewReplacer("DIR/", at.dir+"/"))
}

// writeConfigFolder writes the files of one folder, but not those of folders in it, with words in them replaced.
func writeConfigFolder(at layout, folder string, words *strings.Replacer) error {
	entries, err := configs.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("reading the built-in configuration: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		text, err := configs.ReadFile(folder + "/" + entry.Name())
		if err != nil {
			return fmt.Errorf("reading the built-in configuration: %w", err)
		}
		path := filepath.Join(at.dir, folder, entry.Name())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("creating %s: %w", filepath.Dir(path), err)
		}
		if err := os.WriteFile(path, []byte(words.Replace(string(text))), 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}
