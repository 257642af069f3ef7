// Package config reads and writes one user's depot configuration: which server to ask and with which token.
//
// It is a file of its own, $XDG_CONFIG_HOME/depot/config.json or ~/.config/depot/config.json, with mode 0600. depotctl
// reads it and `depotctl login` writes it; depotd writes it at its first start, also on behalf of the user that called
// sudo.
//
// Safety comes from the mode, from replacing the file as a whole (a reader sees the old or the new one, never half), and
// from strict decoding: a field that this program does not know is refused with the file's name, not skipped.
//
// It does not promise that the token is valid: only the server knows.
package config
