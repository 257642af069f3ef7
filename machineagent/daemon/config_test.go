package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
)

func valid() Config {
	return Config{Buildkitd: "/bin/buildkitd", CNIDir: "/opt/cni", StateDir: "/var/lib/m", CacheDir: `/cache/with "quotes" and \`}.withDefaults()
}

// load lets BuildKit's own strict decoder read the configuration.
func load(t *testing.T, c Config) config.Config {
	t.Helper()
	text, err := c.render()
	require.NoError(t, err)
	read, err := config.Load(strings.NewReader(string(text)))
	require.NoError(t, err, string(text))
	return read
}

func TestConfig_IsWhatBuildKitReads(t *testing.T) {
	t.Parallel()
	c := valid()
	c.Runc, c.Platforms, c.Nameservers = "/usr/sbin/runc", []string{"linux/arm64", "linux/arm/v7"}, []string{"10.0.0.2"}
	c.Registries, c.BridgeSubnet, c.CgroupParent = []string{"10.0.0.1:5000", "registry.local:80"}, "10.77.0.0/24", "depot-mch-x"
	read := load(t, c)
	require.Equal(t, c.CacheDir, read.Root)
	require.Equal(t, []string{"unix:///var/lib/m/buildkitd.sock"}, read.GRPC.Address, "no other listener")
	require.Empty(t, read.GRPC.TLS)
	require.Empty(t, read.GRPC.DebugAddress)
	require.Empty(t, read.Entitlements)
	require.True(t, *read.CDI.Disabled)
	require.False(t, *read.Workers.Containerd.Enabled)
	oci := read.Workers.OCI
	require.True(t, *oci.Enabled)
	require.Equal(t, "/usr/sbin/runc", oci.Binary)
	require.Equal(t, c.Platforms, oci.Platforms)
	require.Equal(t, "depot-mch-x", oci.DefaultCgroupParent)
	require.Equal(t, "bridge", oci.Mode)
	require.Equal(t, "10.77.0.0/24", oci.BridgeSubnet)
	require.Equal(t, "depot0", oci.BridgeName)
	require.Equal(t, "/opt/cni", oci.CNIBinaryPath)
	require.True(t, *oci.GC)
	require.EqualValues(t, 85, oci.GCMaxUsedSpace.Percentage)
	require.Equal(t, []string{"10.0.0.2"}, read.DNS.Nameservers)
	require.Len(t, read.Registries, 2)
	require.True(t, *read.Registries["10.0.0.1:5000"].PlainHTTP)
}

func TestConfig_LeavesOutWhatIsNotSet(t *testing.T) {
	t.Parallel()
	c := valid()
	c.HostNetwork, c.CNIDir = true, ""
	require.NoError(t, c.Validate())
	read := load(t, c)
	require.Equal(t, "host", read.Workers.OCI.Mode)
	require.Empty(t, read.Workers.OCI.Platforms, "the processor's own")
	require.Empty(t, read.Registries)
	require.Nil(t, read.DNS)
}

func TestConfig_ValidateNamesEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	require.NoError(t, valid().Validate())
	err := Config{StateDir: "/" + strings.Repeat("x", 100), Bridge: "a-name-that-is-too-long", CgroupParent: "../.."}.Validate()
	for _, want := range []string{"Buildkitd", "CacheDir", "CNIDir", "at most 107", "15 characters", "not one name"} {
		require.ErrorContains(t, err, want)
	}
	for _, bad := range []string{"*", "a/b", ".", "..", "a*", "[a]"} {
		c := valid()
		c.CgroupParent = bad
		require.ErrorContains(t, c.Validate(), "not one name")
	}
}

func TestConfig_EnvironmentIsNotInherited(t *testing.T) {
	t.Setenv("DEPOT_TOKEN", "canary")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "canary")
	env := valid().environment()
	require.Equal(t, []string{"PATH=/opt/cni:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/var/lib/m"}, env)
}

func TestLog_RemembersTheLastError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		log  []string
		want string
	}{
		"nothing":                      {nil, ""},
		"only information":             {[]string{"time=x level=info msg=a\ntime=x level=info msg=b\n"}, ": time=x level=info msg=b"},
		"an error, then information":   {[]string{"level=error msg=bad\n", "level=info msg=b\n"}, ": level=error msg=bad"},
		"plain text":                   {[]string{"buildkitd: could not lock\nmain.main\n\t/usr/local/go/src/main.go:1\n"}, ": buildkitd: could not lock"},
		"in pieces":                    {[]string{"buildkitd: cou", "ld not lock", "\n\n"}, ": buildkitd: could not lock"},
		"a line without an end":        {[]string{"whole\n", "half"}, ": whole"},
		"a long line is cut, not lost": {[]string{strings.Repeat("x", 1000) + "\n"}, ": " + strings.Repeat("x", maxLine)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := openLog(filepath.Join(t.TempDir(), "log"))
			require.NoError(t, err)
			for _, p := range c.log {
				n, err := l.Write([]byte(p))
				require.NoError(t, err)
				require.Equal(t, len(p), n)
			}
			require.Equal(t, c.want, l.lastWords())
			require.NoError(t, l.Close())
		})
	}
}

func TestLog_StaysSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	require.NoError(t, err)
	line := []byte(strings.Repeat("x", 1<<20) + "\n")
	for range 3 * maxLog >> 20 {
		_, err := l.Write(line)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Equal(t, []string{path, path + ".1"}, files)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(maxLog))
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}
