package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// cgroupPrefix of the control groups of real nodes; process id and start of the supervisor follow.
const cgroupPrefix = "/headway-"

func cgroupOf(supervisor processState) string {
	return fmt.Sprintf("%s%d-%d", cgroupPrefix, supervisor.PID, supervisor.StartTicks)
}

// cgroupMounts are the hierarchies of this machine: one of version 2, or one for each controller of version 1, or
// both.
func cgroupMounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for control groups: %w", err)
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) > 4 && len(kind) > 0 && strings.HasPrefix(kind[0], "cgroup") &&
			!slices.Contains(mounts, fields[4]) {
			mounts = append(mounts, fields[4])
		}
	}
	if len(mounts) == 0 {
		return nil, errors.New("a real node needs control groups, and none are mounted")
	}
	return mounts, nil
}

// makeCgroup makes a control group in every hierarchy.
func makeCgroup(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		// Version 2 hands controllers down only where told to; a controller that it does not hand down is one that
		// the kubelet names when it misses it.
		if controllers, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers")); err == nil {
			for _, controller := range strings.Fields(string(controllers)) {
				_ = os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+"+controller), 0)
			}
		}
		if err := os.Mkdir(filepath.Join(mount, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making a control group: %w", err)
		}
	}
	return nil
}

// removeCgroup removes a control group, with those in it, from every hierarchy. No process may be left in them.
func removeCgroup(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		var groups []string
		err := filepath.WalkDir(filepath.Join(mount, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking for control groups: %w", err)
		}
		// The innermost first. Their files vanish with them.
		for _, group := range slices.Backward(groups) {
			if err := syscall.Rmdir(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing the control group %s: %w", group, err)
			}
		}
	}
	return nil
}

// removeOldCgroups removes those of supervisors that were killed: nobody else does.
func removeOldCgroups() error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		found, err := filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
		if err != nil {
			return fmt.Errorf("looking for old control groups: %w", err)
		}
		for _, path := range found {
			name := "/" + filepath.Base(path)
			var of processState
			if _, err := fmt.Sscanf(name, cgroupPrefix+"%d-%d", &of.PID, &of.StartTicks); err != nil {
				continue
			}
			if now, err := describeProcess(of.PID); err == nil && now == of {
				continue
			}
			if err := removeCgroup(name); err != nil {
				return err
			}
		}
	}
	return nil
}
