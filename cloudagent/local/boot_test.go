package local

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

func TestMachine_RunsInNamespacesOfItsOwn(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	inside := func(script string) string { return strings.TrimSpace(shell(t, p, spec.MachineRef, script)) }

	require.Equal(t, string(spec.Machine), inside("hostname"))
	for _, namespace := range []string{"pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		host, err := os.Readlink("/proc/self/ns/" + namespace)
		require.NoError(t, err)
		require.NotEqual(t, host, inside("readlink /proc/self/ns/"+namespace), namespace)
	}
	processes := strings.Fields(inside("for p in /proc/[0-9]*; do basename $p; done"))
	require.Contains(t, processes, "1")
	require.Less(t, len(processes), 10, "the host's processes are not to be seen")
	require.Contains(t, inside("tr '\\0' ' ' </proc/1/cmdline"), initArgument+" "+string(spec.Machine))
	require.Equal(t, "1", inside("grep -c ' /proc ' /proc/self/mountinfo"), "nothing lies below the machine's /proc")

	require.Equal(t, "depot", inside("ls /run"), "sockets of the host's services are not to be seen")
	inside("mount -t tmpfs tmpfs /mnt && touch /run/left-by-a-machine /mnt/left")
	for _, file := range []string{"/run/left-by-a-machine", "/mnt/left"} {
		_, err := os.Stat(file)
		require.ErrorIs(t, err, fs.ErrNotExist, "%s is not to be seen on the host", file)
	}
}

func TestMachine_SeesItsOwnCgroupsAsTheRoot(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	hierarchies, err := readHierarchies()
	require.NoError(t, err)
	require.NotEmpty(t, hierarchies)
	for line := range strings.Lines(shell(t, p, spec.MachineRef, "cat /proc/self/cgroup")) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		want := "/"
		if fields[1] == "" {
			want = "/" + leafCgroup // unified
		}
		require.Equal(t, want, fields[2], line)
	}
	for _, h := range hierarchies {
		made := filepath.Join(h.mountPoint, "made-inside")
		shell(t, p, spec.MachineRef, "mkdir "+made)
		require.DirExists(t, filepath.Join(h.machine(string(spec.Machine)), "made-inside"), "the machine's root is its cgroup")
		require.NoDirExists(t, made)
	}
}

func TestMachine_InheritsNoTokenNoTerminalAndNoDescriptor(t *testing.T) {
	t.Setenv("DEPOT_TOKEN", "depot_secret")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	require.NotContains(t, shell(t, p, spec.MachineRef, "cat /proc/[0-9]*/environ | tr '\\0' '\\n'"), "secret")
	require.Equal(t, "/dev/null\n", shell(t, p, spec.MachineRef, "readlink /proc/1/fd/0"))
	// 1 is the init, 2 and more the stand-in and this shell.
	stdio := shell(t, p, spec.MachineRef, "for fd in 1 2; do readlink /proc/1/fd/$fd; done")
	require.Equal(t, strings.Repeat(p.LogPath(spec.Machine)+"\n", 2), stdio)
	held := shell(t, p, spec.MachineRef, "for fd in /proc/$PPID/fd/*; do readlink $fd; done")
	require.NotContains(t, held, aliveFile)
	require.NotContains(t, held, p.cfg.Dir+"/locks")
	require.Equal(t, "0\n", shell(t, p, spec.MachineRef, "cut -d' ' -f7 /proc/1/stat"), "no terminal")
}

func TestMachine_BootsWithUserDataThatOnlyRootCanRead(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Registries = []string{"192.0.2.7:5000"}
	p := newProvider(t, cfg)
	spec := newSpec()
	create(t, p, spec)
	status := machine(t, p, spec.MachineRef)
	_, body := ask(t, p, spec.MachineRef, "/user-data")
	var data bus.UserData
	require.NoError(t, json.Unmarshal([]byte(body), &data))
	require.NoError(t, data.Validate())
	listen := status.Addresses[0] + ":8443"
	require.Equal(t, bus.UserData{
		Machine: spec.Machine, Attempt: 1, Architecture: hostArch, Nonce: spec.Nonce.Reveal(), BusURL: spec.BusURL,
		BusSocket: "/run/depot/bus/bus.sock", StateDir: "/run/depot/state", CacheDir: p.machineFile(spec.Machine, cacheDir),
		Listen: listen, Addresses: []string{listen}, Attestor: "nonce", Buildkitd: cfg.Tools.Buildkitd, Runc: cfg.Tools.Runc,
		HostNetwork: true, BuildSubnet: buildSubnet, Nameservers: findResolver(resolvers).Nameservers, Registries: cfg.Registries,
	}, data)
	require.NoError(t, filepath.WalkDir(cfg.Dir, func(path string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := entry.Info()
		require.NoError(t, err)
		if entry.Name() != resolvFile && path != cfg.Dir {
			require.Zero(t, info.Mode().Perm()&0o077, "%s is open to others", path)
		}
		return nil
	}))
	for _, file := range []string{machineFile, logFile, aliveFile} {
		text, err := os.ReadFile(p.machineFile(spec.Machine, file))
		require.NoError(t, err)
		require.NotContains(t, string(text), spec.Nonce.Reveal(), file)
	}
}

func TestMachine_KeepsStateAndVolumeWhenItIsStoppedAndStarted(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	volume := newVolume(t, p, spec)
	spec.Volume = volume
	create(t, p, spec)
	_, before := ask(t, p, spec.MachineRef, "/user-data")
	address := machine(t, p, spec.MachineRef).Addresses
	shell(t, p, spec.MachineRef, "echo key >/run/depot/state/identity && echo layer >"+p.dataDir(volume)+"/cache.db")
	require.NoError(t, p.StopMachine(t.Context(), spec.MachineRef))
	requireNothingLeft(t, spec.Machine)
	require.NoError(t, p.StartMachine(t.Context(), spec.MachineRef))
	_, after := ask(t, p, spec.MachineRef, "/user-data")
	require.Equal(t, before, after)
	require.Equal(t, address, machine(t, p, spec.MachineRef).Addresses)
	require.Equal(t, "key\nlayer\n", shell(t, p, spec.MachineRef, "cat "+p.machineFile(spec.Machine, stateDir)+"/identity "+p.dataDir(volume)+"/cache.db"))

	require.NoError(t, p.DeleteMachine(t.Context(), spec.MachineRef))
	requireNothingLeft(t, spec.Machine)
	entries, err := os.ReadDir(p.machineDir(spec.Machine))
	require.NoError(t, err)
	require.Len(t, entries, 1, "only the record, which forbids the attempt")
	kept, err := os.ReadFile(filepath.Join(p.dataDir(volume), "cache.db"))
	require.NoError(t, err)
	require.Equal(t, "layer\n", string(kept), "a volume outlives its machine")
}

func TestProvider_RefusesToLaunchWithoutToolsAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.AllowHostNetwork = false
	p := newProvider(t, cfg)
	spec := newSpec()
	err := p.CreateMachine(t.Context(), spec, announced)
	require.ErrorIs(t, err, bus.CodeUnavailable)
	for _, plugin := range cniPlugins {
		require.ErrorContains(t, err, plugin)
	}
	require.Contains(t, bus.AsFault(err).Hint, "--allow-host-network")
	listing, err := p.List(t.Context(), spec.Connection)
	require.NoError(t, err)
	require.Empty(t, listing)
}

func TestProvider_LeavesNothingOfALaunchThatFails(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	broken := filepath.Join(t.TempDir(), "machineagent")
	require.NoError(t, os.WriteFile(broken, []byte("not a program"), 0o700))
	cfg.Tools.Machineagent = broken
	p := newProvider(t, cfg)
	spec := newSpec()
	spec.Volume = newVolume(t, p, spec)
	err := p.CreateMachine(t.Context(), spec, announced)
	require.ErrorContains(t, err, "exec format error")
	requireNothingLeft(t, spec.Machine)
	listing, err := p.List(t.Context(), spec.Connection)
	require.NoError(t, err)
	require.Empty(t, listing.Machines)
	require.Equal(t, bus.CloudAvailable, listing.Volumes[0].State)
}

func TestProvider_SaysWhyAMachineEnded(t *testing.T) {
	t.Parallel()
	p := newProvider(t, testConfig(t))
	spec := newSpec()
	create(t, p, spec)
	ask(t, p, spec.MachineRef, "/shell", "script", "true")                           // it is up
	http.Get("http://" + machine(t, p, spec.MachineRef).Addresses[0] + ":8443/exit") //nolint:errcheck,bodyclose // it ends in mid-answer
	var status bus.MachineStatus
	require.Eventually(t, func() bool {
		status = machine(t, p, spec.MachineRef)
		return status.State == bus.CloudStopped
	}, eventually, tick)
	require.Equal(t, "machineagent exited with status 7", status.Reason)
	require.Empty(t, status.Addresses)
	requireNothingLeft(t, spec.Machine)
	require.NoError(t, p.StartMachine(t.Context(), spec.MachineRef))
	require.Empty(t, machine(t, p, spec.MachineRef).Reason)
}

func TestProvider_EmulatesAnArchitectureOnlyIfTold(t *testing.T) {
	t.Parallel()
	foreign := bus.ARM64
	if hostArch == foreign {
		foreign = bus.AMD64
	}
	spec := newSpec()
	spec.Architecture = foreign
	cfg := testConfig(t)
	require.ErrorIs(t, newProvider(t, cfg).CreateMachine(t.Context(), spec, announced), bus.CodeInvalid)
	cfg.EmulateArchitectures = []bus.Arch{foreign}
	p := newProvider(t, cfg)
	create(t, p, spec)
	_, body := ask(t, p, spec.MachineRef, "/user-data")
	require.Contains(t, body, `"architecture":"`+string(foreign)+`"`)
}
