package depotctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// target is whom to ask and as whom. It is comparable, so that a connection made on a guess can be kept if the guess
// was right.
type target struct {
	server string
	caFile string
	token  bus.Token
}

// stdinToken is the value of --token that means: read it from standard input.
const stdinToken = "-"

// options are the flags that every command has.
type options struct {
	Server string `help:"Address of the depot server (env DEPOT_SERVER; default: the configuration file, else ${default_server})." placeholder:"URL"`
	Token  string `help:"Token; - reads it from standard input (env DEPOT_TOKEN; default: the configuration file)." placeholder:"TOKEN"`
}

// resolve merges flags, environment and configuration file, in this order. stdin is read only for a token of "-".
func (o options) resolve(stdin io.Reader) (target, error) {
	file, err := config.Default()
	var stored config.Config
	if err == nil {
		stored, err = file.Load()
	}
	if err != nil {
		return target{}, failf(ExitUsage, "%v", err).hint("correct the file, or remove it and run `depotctl login`").because(err)
	}
	t := target{
		server: cmp.Or(o.Server, os.Getenv("DEPOT_SERVER"), stored.Server, config.DefaultServer),
		caFile: cmp.Or(os.Getenv("DEPOT_CA_FILE"), stored.CAFile),
		token:  stored.Token,
	}
	text, source := o.Token, "--token"
	if text == "" {
		text, source = os.Getenv("DEPOT_TOKEN"), "DEPOT_TOKEN"
	}
	if text == stdinToken && source == "--token" {
		if text, err = readToken(stdin); err != nil {
			return target{}, err
		}
		source = "the token on standard input"
	}
	if text != "" {
		if t.token, err = bus.ParseToken(text); err != nil {
			return target{}, failf(ExitToken, "%s: %v", source, err).because(err)
		}
	}
	return t, nil
}

// require refuses to go on without a token.
func (t target) require() error {
	if !t.token.IsZero() {
		return nil
	}
	return failf(ExitToken, "no token for %s", t.server).
		hint("run `depotctl login`, or set DEPOT_TOKEN; the first start of depotd writes a token for you")
}

// connect opens a connection to t. An address where nothing listens is given up early: nobody waits ten seconds to be
// told that depotd does not run.
func (t target) connect(ctx context.Context) (*bus.Conn, error) {
	if err := t.require(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	nobody := time.AfterFunc(reachable, cancel)
	defer nobody.Stop()
	conn, err := bus.Connect(ctx, bus.Config{
		URL: t.server, CAFile: t.caFile, Token: t.token, Name: "depotctl", Version: Version(),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err == nil {
				nobody.Stop()
			}
			return c, err
		},
	})
	return conn, explain("connect", t.server, err)
}

// maxTokenText bounds what is read as a token: a token has about 100 characters.
const maxTokenText = 4096

func readToken(stdin io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(stdin, maxTokenText))
	if err != nil {
		return "", fmt.Errorf("read the token from standard input: %w", err)
	}
	if len(text) == 0 {
		return "", failf(ExitToken, "there is no token on standard input")
	}
	return string(text), nil
}

// warnVisibleToken tells a user who typed a token who else can read it.
func (o options) warnVisibleToken(stderr io.Writer) {
	if o.Token == "" || o.Token == stdinToken {
		return
	}
	fmt.Fprintln(stderr, "depotctl: warning: a token on the command line is kept in the shell's history and seen by other users of this host; use DEPOT_TOKEN or --token -")
}
