package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// hello is the smallest context.
var hello = []string{"Dockerfile", "FROM scratch\nCOPY hello /hello\n", "hello", "world"}

// stepImage begins a Dockerfile whose RUN steps execute testdata/step.
const stepImage = "FROM scratch AS base\nCOPY step /step\n"

// fixture is what all cases share: one installation with one machine, and the servers that a build talks to.
type fixture struct {
	*installation
	host     string // an address of this host that the machine reaches
	registry string
}

// cases are the Dockerfiles and flags of daily use. Each runs through the whole product.
var cases = []struct {
	name string
	run  func(t *testing.T, f *fixture)
}{
	{"multi-stage", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", stepImage+`RUN ["/step", "write", "/out/made", "in the first stage"]`+"\nFROM scratch\nCOPY --from=base /out/made /made\n")
		b.succeeds(t, f.installation, "-o", "out", ".")
		require.Equal(t, "in the first stage", b.read(t, "out/made"))
		require.NoFileExists(t, b.path("out/step"))
	}},
	{"secret from a file and from the environment", func(t *testing.T, f *fixture) {
		b := newBuild(t, "secret.txt", "from a file", "Dockerfile", stepImage+
			`RUN --mount=type=secret,id=file ["/step", "copy", "/run/secrets/file", "/got/file"]`+"\n"+
			`RUN --mount=type=secret,id=word,env=WORD ["/step", "env", "WORD", "/got/word"]`+"\n"+
			"FROM scratch\nCOPY --from=base /got /\n")
		b.env = []string{"MY_WORD=from the environment"}
		b.succeeds(t, f.installation, "--secret", "id=file,src=secret.txt", "--secret", "id=word,env=MY_WORD", "-o", "out", ".")
		require.Equal(t, "from a file", b.read(t, "out/file"))
		require.Equal(t, "from the environment", b.read(t, "out/word"))
	}},
	{"SSH agent", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", stepImage+`RUN --mount=type=ssh ["/step", "keys", "/got/keys"]`+"\nFROM scratch\nCOPY --from=base /got /\n")
		b.env = []string{"SSH_AUTH_SOCK=" + startAgent(t)}
		b.succeeds(t, f.installation, "--ssh", "default", "-o", "out", ".")
		require.Equal(t, "1", b.read(t, "out/keys"))
	}},
	{"named context", func(t *testing.T, f *fixture) {
		b := newBuild(t, "app/Dockerfile", "FROM scratch\nCOPY --from=lib thing /thing\n", "lib/thing", "from another directory")
		b.succeeds(t, f.installation, "--build-context", "lib=lib", "-o", "out", "app")
		require.Equal(t, "from another directory", b.read(t, "out/thing"))
	}},
	{"oci-layout context", func(t *testing.T, f *fixture) {
		b := newBuild(t, append(hello, "next/Dockerfile", "FROM parent\nCOPY more /more\n", "next/more", "and more")...)
		b.succeeds(t, f.installation, "-t", "parent:v1", "-o", "type=oci,dest=layout,tar=false", ".")
		b.succeeds(t, f.installation, "--build-context", "parent=oci-layout://./layout:v1", "-o", "out", "next")
		require.Equal(t, "world", b.read(t, "out/hello"))
		require.Equal(t, "and more", b.read(t, "out/more"))
	}},
	{"Dockerfile on standard input", func(t *testing.T, f *fixture) {
		b := newBuild(t, "context/hello", "world")
		b.stdin = []byte("FROM scratch\nCOPY hello /from-stdin\n")
		b.succeeds(t, f.installation, "-f", "-", "-o", "out", "context")
		require.Equal(t, "world", b.read(t, "out/from-stdin"))

		b.stdin = []byte("FROM scratch\nCOPY <<EOF /inline\nno context at all\nEOF\n")
		b.succeeds(t, f.installation, "-o", "out2", "-")
		require.Equal(t, "no context at all\n", b.read(t, "out2/inline"))
	}},
	{"tar context on standard input", func(t *testing.T, f *fixture) {
		b := newBuild(t)
		b.stdin = totar(t, "Dockerfile", "FROM scratch\nCOPY hello /\n", "hello", "from a tar")
		b.succeeds(t, f.installation, "-o", "out", "-")
		require.Equal(t, "from a tar", b.read(t, "out/hello"))
	}},
	{"git context", func(t *testing.T, f *fixture) {
		repository := startGit(t, f.host)
		b := newBuild(t)
		b.succeeds(t, f.installation, "-o", "out", repository)
		require.Equal(t, "from git", b.read(t, "out/hello"))
		b.succeeds(t, f.installation, "-o", "sub", repository+"#main:sub")
		require.Equal(t, "from git/sub", b.read(t, "sub/hello"))
	}},
	{".dockerignore", func(t *testing.T, f *fixture) {
		b := newBuild(t, "context/Dockerfile", "FROM scratch\nCOPY . /\n", "context/.dockerignore", "*.log\nnode_modules\n!keep.log\n",
			"context/hello", "world", "context/debug.log", "noise", "context/keep.log", "kept", "context/node_modules/x", "noise")
		b.succeeds(t, f.installation, "-o", "out", "context")
		require.FileExists(t, b.path("out/hello"))
		require.FileExists(t, b.path("out/keep.log"))
		require.NoFileExists(t, b.path("out/debug.log"))
		require.NoDirExists(t, b.path("out/node_modules"))
	}},
	{"--target", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", "FROM scratch AS one\nCOPY hello /one\nFROM scratch AS two\nCOPY hello /two\n", "hello", "world")
		b.succeeds(t, f.installation, "--target", "one", "-o", "out", ".")
		require.FileExists(t, b.path("out/one"))
		require.NoFileExists(t, b.path("out/two"))
	}},
	{"build arguments", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", stepImage+"ARG GIVEN=default\nARG INHERITED\nARG LEFT=default\n"+
			`RUN ["/step", "env", "GIVEN", "/got/given"]`+"\n"+`RUN ["/step", "env", "INHERITED", "/got/inherited"]`+"\n"+`RUN ["/step", "env", "LEFT", "/got/left"]`+"\n"+
			"FROM scratch\nCOPY --from=base /got /\n")
		b.env = []string{"INHERITED=from the environment"}
		b.succeeds(t, f.installation, "--build-arg", "GIVEN=from the flag", "--build-arg", "INHERITED", "-o", "out", ".")
		require.Equal(t, "from the flag", b.read(t, "out/given"))
		require.Equal(t, "from the environment", b.read(t, "out/inherited"))
		require.Equal(t, "default", b.read(t, "out/left"))
	}},
	{"labels and --output oci", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", "FROM scratch\nLABEL own=dockerfile\nCOPY hello /\n", "hello", "world")
		b.succeeds(t, f.installation, "--label", "given=flag", "--label", "org.example.empty", "-o", "type=oci,dest=image.tar", ".")
		require.Equal(t, map[string]string{"own": "dockerfile", "given": "flag", "org.example.empty": ""}, ociConfig(t, b.read(t, "image.tar")).Config.Labels)
	}},
	{"--output tar to a file and to standard output", func(t *testing.T, f *fixture) {
		b := newBuild(t, hello...)
		b.succeeds(t, f.installation, "-o", "type=tar,dest=out.tar", ".")
		require.Equal(t, "world", untar(t, b.read(t, "out.tar"))["hello"])
		b.succeeds(t, f.installation, "-o", "-", ".")
		require.Equal(t, "world", untar(t, b.stdout)["hello"])
	}},
	{"--output docker and --load into a Docker engine", func(t *testing.T, f *fixture) {
		b := newBuild(t, hello...)
		b.env = []string{"DOCKER_HOST=" + startEngine(t)}
		b.succeeds(t, f.installation, "--load", "-t", "hello:loaded", ".")
		b.succeeds(t, f.installation, "-o", "type=docker", "-t", "hello:exported", ".")
		docker := exec.CommandContext(t.Context(), program(t, "docker", "install Debian's docker.io, which `make test` does"), "image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
		docker.Env = append(os.Environ(), b.env...)
		out, err := docker.CombinedOutput()
		require.NoError(t, err, string(out))
		require.ElementsMatch(t, []string{"hello:loaded", "hello:exported"}, strings.Fields(string(out)))
	}},
	{"--push", func(t *testing.T, f *fixture) {
		startRegistry(t, f.registry)
		b := newBuild(t, hello...)
		b.succeeds(t, f.installation, "--push", "-t", f.registry+"/hello:v1", "--metadata-file", "meta.json", ".")
		var meta map[string]any
		decode(t, b.read(t, "meta.json"), &meta)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.registry+"/v2/hello/manifests/v1", nil)
		require.NoError(t, err)
		request.Header.Set("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json")
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode, string(text))
		require.Equal(t, meta["containerimage.digest"], response.Header.Get("Docker-Content-Digest"))
	}},
	{"--iidfile and --metadata-file", func(t *testing.T, f *fixture) {
		b := newBuild(t, hello...)
		b.succeeds(t, f.installation, "--iidfile", "iid", "--metadata-file", "meta.json", "-o", "type=oci,dest=image.tar", ".")
		var meta map[string]json.RawMessage
		decode(t, b.read(t, "meta.json"), &meta)
		require.Regexp(t, `^sha256:[0-9a-f]{64}$`, b.read(t, "iid"))
		require.Equal(t, `"`+b.read(t, "iid")+`"`, string(meta["containerimage.config.digest"]))
		require.Contains(t, meta, "containerimage.digest")
		require.Contains(t, string(meta["buildx.build.ref"]), "depot/")
		require.Contains(t, meta, "buildx.build.provenance")
	}},
	{"two platforms on one machine", func(t *testing.T, f *fixture) {
		if runtime.GOARCH != "amd64" {
			t.Skip("linux/386 is built by an amd64 machine: run the tests on amd64")
		}
		b := newBuild(t, "Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY hello-$TARGETARCH /hello\n", "hello-amd64", "sixty-four", "hello-386", "thirty-two")
		b.succeeds(t, f.installation, "--platform", "linux/amd64,linux/386", "-o", "out", ".")
		require.Equal(t, "sixty-four", b.read(t, "out/linux_amd64/hello"))
		require.Equal(t, "thirty-two", b.read(t, "out/linux_386/hello"))
		require.Equal(t, 1, strings.Count(b.stderr, "builder\n"), "one builder is acquired:\n%s", b.stderr)
	}},
	{"--no-cache-filter", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", stepImage+`RUN ["/step", "write", "/a", "one"]`+"\nFROM base AS last\n"+`RUN ["/step", "write", "/b", "two"]`+"\n")
		b.succeeds(t, f.installation, ".")
		b.succeeds(t, f.installation, "--no-cache-filter", "last", ".")
		require.Regexp(t, `#(\d+) \[base 2/2\] RUN .*\n#\d+ CACHED`, b.stderr)
		require.Regexp(t, `#(\d+) \[last 1/1\] RUN .*\n#\d+ DONE`, b.stderr)
	}},
	{"--check", func(t *testing.T, f *fixture) {
		b := newBuild(t, "clean/Dockerfile", "FROM scratch AS a\nCOPY . /\n", "smelly/Dockerfile", "FROM scratch as a\nCOPY . /\n")
		b.succeeds(t, f.installation, "--check", "clean")
		require.Contains(t, b.stdout, "Check complete, no warnings found.")
		require.Equal(t, 1, b.run(t, f.installation, "--check", "smelly"))
		require.Contains(t, b.stdout, "Check complete, 1 warning has been found!")
		require.Contains(t, b.stdout, "FromAsCasing")
	}},
	{"failing RUN", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", stepImage+`RUN ["/step", "exit", "3"]`+"\n")
		require.Equal(t, 1, b.run(t, f.installation, "."))
		require.Contains(t, b.stderr, "this step is about to fail")
		require.Regexp(t, `(?m)^   3 \| >>> RUN \["/step", "exit", "3"\]$`, b.stderr)
		require.Contains(t, b.stderr, `ERROR: failed to build: failed to solve: process "/step exit 3" did not complete successfully: exit code: 3`)
	}},
	{"syntax error", func(t *testing.T, f *fixture) {
		b := newBuild(t, "Dockerfile", "FROM scratch\nFETCH hello /\n", "hello", "world")
		require.Equal(t, 1, b.run(t, f.installation, "."))
		require.Regexp(t, `(?m)^   2 \| >>> FETCH hello /$`, b.stderr)
		require.Contains(t, b.stderr, "ERROR: failed to build: failed to solve: dockerfile parse error on line 2: unknown instruction: FETCH")
	}},
}

func TestCases(t *testing.T) {
	t.Parallel()
	host := hostAddress(t)
	registry := freeAddress(t, host)
	f := &fixture{installation: newInstallation(t, "--http-registry", registry), host: host, registry: registry}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, f) })
	}
}

func TestCacheMountOutlivesBuildsAndTheMachine(t *testing.T) {
	t.Parallel()
	in := newInstallation(t)
	b := newBuild(t, "Dockerfile", stepImage+"COPY source /source\n"+
		`RUN --mount=type=cache,target=/cache ["/step", "count", "/cache/n", "/got/n"]`+"\nFROM scratch\nCOPY --from=base /got /\n")
	count := func(source string) string {
		b.write(t, "source", source) // so that the step runs again
		b.succeeds(t, in, "-o", "out", ".")
		return b.read(t, "out/n")
	}
	require.Equal(t, "1", count("one"))
	require.Equal(t, "2", count("two"))
	in.stop(t) // with its machine
	in.start(t)
	require.Equal(t, "3", count("three"), b.stderr+in.log.String())
}
