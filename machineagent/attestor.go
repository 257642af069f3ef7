package machineagent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/depotctl/depot/bus"
)

// Attestor gets evidence of who the machine is from the platform that it runs on.
type Attestor interface {
	// Attest returns fresh evidence. It may ask the platform, and must end with ctx.
	Attest(ctx context.Context) (bus.Attestation, error)
}

// nonceAttestor adds nothing to the launch nonce and the key.
type nonceAttestor struct{}

// Attest implements Attestor.
func (nonceAttestor) Attest(context.Context) (bus.Attestation, error) {
	return bus.Attestation{Kind: "nonce"}, nil
}

func chooseAttestor(cfg Config) (Attestor, error) {
	known := map[string]Attestor{"nonce": nonceAttestor{}}
	maps.Copy(known, cfg.Attestors)
	chosen, ok := known[cfg.UserData.Attestor]
	if !ok {
		return nil, fmt.Errorf("no attestor %q (there are %s)", cfg.UserData.Attestor, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	return chosen, nil
}
