package local

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

const hostArch = bus.Arch(runtime.GOARCH)

type assertT = assert.CollectT

func TestMachine_RunsInNamespacesOfItsOwn(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	start := time.Now()
	create(t, p, spec)
	t.Log("created in", time.Since(start))
	require.Equal(t, bus.CloudRunning, machine(t, p, spec.MachineRef).State)
	t.Log(shell(t, p, spec.MachineRef, "ps -ef; cat /proc/self/cgroup; mount | grep -E 'cgroup|proc'; hostname; ip a; ip r; ls /run; cat /etc/resolv.conf; env"))
}
