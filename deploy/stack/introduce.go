package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/depotctl/config"
)

// introduce tells users where depotd is, closes Ready, and says so. At the first start it writes server and token into a
// user's configuration file; a later start corrects the address there, and touches nothing that is not its own.
func (s *Stack) introduce(p parts) error {
	url := p.server.URL()
	s.say("listening on %s, state in %s", url, p.dir.path)
	if s.cfg.User.Path != "" {
		if err := s.writeUser(p, url); err != nil {
			return err
		}
	}
	login := "depotctl login"
	if url != config.DefaultServer {
		login += " --server " + url
	}
	s.say("anybody else: sudo cat %s | %s", p.dir.file("user-token"), login)
	close(s.ready)
	if err := s.cfg.Tools.Check(s.cfg.AllowHostNetwork); err != nil {
		s.say("ready, but no machine can be started: %s", Explain(err))
		return nil
	}
	s.say("ready: depotctl build . works now")
	return nil
}

func (s *Stack) say(format string, args ...any) { s.cfg.Say(fmt.Sprintf(format, args...)) }

func (s *Stack) writeUser(p parts, url string) error {
	first := false
	if _, err := os.Stat(p.dir.file("introduced")); errors.Is(err, fs.ErrNotExist) {
		first = true
	}
	have, err := s.cfg.User.Load()
	if err != nil {
		s.say("warning: %v; it is left as it is", err)
		return nil
	}
	ours := have.Token.ID == p.keys.user.ID
	switch {
	case ours && have.Server == url:
		s.say("server and token are in %s", s.cfg.User.Path)
	case ours || first && have.Token.IsZero():
		if err := s.cfg.User.Save(config.Config{Server: url, Token: p.keys.user}); err != nil {
			return err
		}
		s.say("wrote server and token into %s", s.cfg.User.Path)
	case !have.Token.IsZero():
		s.say("%s is for %s, and is left as it is", s.cfg.User.Path, have.Server)
	}
	return writePrivate(p.dir.file("introduced"), "")
}

// Explain returns what a person should read of an error: its line and, on a line of its own, what to do.
func Explain(err error) string {
	if fault, ok := errors.AsType[*bus.Fault](err); ok && fault.Hint != "" {
		return err.Error() + "\nhint: " + fault.Hint
	}
	return err.Error()
}
