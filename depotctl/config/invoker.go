package config

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// Invoker is the file of the user who called sudo, owned by that user; without sudo it is the same as Default.
func Invoker() (File, error) {
	name := os.Getenv("SUDO_USER")
	if name == "" || os.Geteuid() != 0 {
		return Default()
	}
	u, err := user.Lookup(name)
	if err != nil {
		return File{}, fmt.Errorf("find the user who called sudo: %w", err)
	}
	return fileOf(u)
}

// fileOf ignores XDG_CONFIG_HOME: the variable of this process is root's, not the other user's.
func fileOf(u *user.User) (File, error) {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return File{}, fmt.Errorf("user %s: uid %q is not a number", u.Username, u.Uid)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return File{}, fmt.Errorf("user %s: gid %q is not a number", u.Username, u.Gid)
	}
	return File{
		Path:  filepath.Join(u.HomeDir, ".config", "depot", "config.json"),
		Owner: &Owner{UID: uid, GID: gid},
	}, nil
}
