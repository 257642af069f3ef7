package depotctl

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/buildx/util/platformutil"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/depotctl/depot/bus"
)

// served is what each architecture's machines build without emulation, in buildx's spelling. buildx boots every node
// when a platform is in nobody's list, so the lists are explicit and what is outside them is refused beforehand.
var served = []struct {
	arch      bus.Arch
	platforms []string
}{
	{bus.AMD64, []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/386"}},
	{bus.ARM64, []string{"linux/arm64", "linux/arm/v7", "linux/arm/v6"}},
}

// architectures returns the machines that a build for the given platforms needs, in the order in which they are first
// asked for. None means the project's default.
func architectures(specs []string) ([]bus.Arch, error) {
	wanted, err := platformutil.Parse(specs)
	if err != nil {
		return nil, err
	}
	var archs []bus.Arch
	for _, p := range wanted {
		arch, ok := builderFor(p)
		if !ok {
			return nil, failf(ExitUsage, "no builder for platform %s", platforms.FormatAll(p)).
				hint("builders are native and build for: %s", strings.Join(allPlatforms(), ", "))
		}
		if !slices.Contains(archs, arch) {
			archs = append(archs, arch)
		}
	}
	return archs, nil
}

// builderFor matches as buildx does when it chooses a node.
func builderFor(p ocispecs.Platform) (bus.Arch, bool) {
	for _, s := range served {
		for _, spec := range s.platforms {
			if platforms.OnlyStrict(platforms.MustParse(spec)).Match(p) {
				return s.arch, true
			}
		}
	}
	return "", false
}

func allPlatforms() []string {
	var all []string
	for _, s := range served {
		all = append(all, s.platforms...)
	}
	return all
}

// parsePlatforms parses one of the lists above: an error is a mistake in this file.
func parsePlatforms(specs []string) []ocispecs.Platform {
	parsed, err := platformutil.Parse(specs)
	if err != nil {
		panic(fmt.Sprintf("platform list: %v", err))
	}
	return parsed
}
