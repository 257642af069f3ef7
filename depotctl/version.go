package depotctl

import (
	"runtime/debug"
	"sync"
)

// version is set by the linker: -X github.com/depotctl/depot/depotctl.version=v1.2.3.
var version string

// Version is the version of this program.
func Version() string {
	if version != "" {
		return version
	}
	return moduleVersion()
}

var moduleVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
})
