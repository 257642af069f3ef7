package depotctl

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// loginCommand stores a token.
type loginCommand struct {
	CAFile string `name:"ca-file" help:"PEM file with the root of the server's certificate, for a tls:// address." placeholder:"FILE"`
}

// Run checks the token with the server before anything is written.
func (c *loginCommand) Run(a *app) error {
	file, err := config.Default()
	if err != nil {
		return err
	}
	o := a.options
	if o.Token == "" && os.Getenv("DEPOT_TOKEN") == "" {
		if o.Token, err = a.promptToken(); err != nil {
			return err
		}
	} else {
		o.warnVisibleToken(a.stderr)
	}
	t, err := o.resolve(a.stdin)
	if err != nil {
		return err
	}
	if c.CAFile != "" {
		if t.caFile, err = filepath.Abs(c.CAFile); err != nil {
			return err
		}
	}
	conn, err := t.connect(a.ctx)
	if err != nil {
		return err
	}
	defer conn.Close() // nothing is in flight
	if err := file.Save(config.Config{Server: t.server, CAFile: t.caFile, Token: t.token}); err != nil {
		return err
	}
	welcome := conn.Welcome()
	fmt.Fprintf(a.stdout, "logged in to %s as %s of organization %s; stored in %s\n", t.server, welcome.Role, welcome.Organization, file.Path)
	return nil
}

// promptToken asks at a terminal without an echo, and reads a pipe as it is.
func (a *app) promptToken() (string, error) {
	stdin, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(stdin.Fd())) {
		return readToken(a.stdin)
	}
	fmt.Fprint(a.stderr, "token: ")
	text, err := term.ReadPassword(int(stdin.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", fmt.Errorf("read the token from the terminal: %w", err)
	}
	return string(text), nil
}

// logoutCommand forgets the token.
type logoutCommand struct{}

// Run keeps the server's address: the next login will be there too.
func (c *logoutCommand) Run(a *app) error {
	file, err := config.Default()
	if err != nil {
		return err
	}
	stored, err := file.Load()
	if err != nil { // what cannot be read may still hold a token
		if err := file.Remove(); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "removed %s, which could not be read\n", file.Path)
		return nil
	}
	if stored.Token.IsZero() {
		fmt.Fprintln(a.stdout, "not logged in")
		return nil
	}
	stored.Token = bus.Token{}
	if err := file.Save(stored); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "logged out of %s; the token itself is still valid: `depotctl tokens revoke` ends it\n", cmp.Or(stored.Server, config.DefaultServer))
	return nil
}
