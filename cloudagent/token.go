package cloudagent

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/depotctl/depot/bus"
)

// ReadToken reads a connection token from where a flag says: "-" is stdin, what begins with "depot_" is the token itself,
// anything else is a file. A file is best: arguments can be read by everybody on the host.
func ReadToken(where string, stdin io.Reader) (bus.Token, error) {
	text := where
	switch {
	case where == "-":
		data, err := io.ReadAll(io.LimitReader(stdin, 4096))
		if err != nil {
			return bus.Token{}, fmt.Errorf("read token from standard input: %w", err)
		}
		text = string(data)
	case !strings.HasPrefix(where, "depot_"):
		data, err := os.ReadFile(where)
		if err != nil {
			return bus.Token{}, fmt.Errorf("read token: %w", err)
		}
		text = string(data)
	}
	return bus.ParseToken(text)
}
