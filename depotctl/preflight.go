package depotctl

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/buildx/util/buildflags"
	"github.com/docker/buildx/util/urlutil"
	"github.com/docker/cli/cli/command"
	dockerclient "github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

// engineTimeout is how long a Docker engine has to answer before --load is refused.
const engineTimeout = 5 * time.Second

// preflight refuses what would certainly fail after a builder has been waited for. Whatever it is not sure about is left
// to buildx and BuildKit, whose own messages then appear.
func preflight(ctx context.Context, cli command.Cli, flags *pflag.FlagSet, contextPath string) error {
	if err := checkDockerfile(flags, contextPath); err != nil {
		return err
	}
	if !loadsImage(flags) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if _, err := cli.Client().Ping(ctx, dockerclient.PingOptions{}); err != nil {
		return failf(ExitNoEngine, "there is no Docker engine to load the image into: %s", oneLine(err.Error())).
			hint("start Docker or set DOCKER_HOST; without one, write the image to a file: --output type=docker,dest=image.tar").because(err)
	}
	return nil
}

// loadsImage reports whether the result goes into the user's own Docker engine.
func loadsImage(flags *pflag.FlagSet) bool {
	if load, err := flags.GetBool("load"); err == nil && load {
		return true
	}
	outputs, err := flags.GetStringArray("output")
	var exports []*buildflags.ExportEntry
	if err == nil {
		exports, err = buildflags.ParseExports(outputs)
	}
	return err == nil && slices.ContainsFunc(exports, func(e *buildflags.ExportEntry) bool { // of an error buildx says what is wrong
		return e.Type == "docker" && e.Destination == "" && e.Attrs["context"] == ""
	})
}

// checkDockerfile knows two certain mistakes: a context that does not exist, and one without a Dockerfile.
func checkDockerfile(flags *pflag.FlagSet, contextPath string) error {
	if contextPath == "" || contextPath == "-" || urlutil.IsRemoteURL(contextPath) {
		return nil
	}
	if !isDirectory(contextPath) {
		return failf(ExitFailed, "there is no build context at %q", contextPath).
			hint("give the directory that holds the sources, a git or http URL, or - for standard input")
	}
	file := flags.Lookup("file").Value.String()
	if file == "-" || urlutil.IsHTTPURL(file) || customFrontend(flags) {
		return nil
	}
	candidates := []string{file}
	if file == "" {
		candidates = []string{filepath.Join(contextPath, "Dockerfile"), filepath.Join(contextPath, "dockerfile")}
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if file != "" {
		return failf(ExitFailed, "there is no Dockerfile at %s", file).hint("-f is relative to the working directory, not to the context")
	}
	return failf(ExitFailed, "there is no Dockerfile in %s", contextPath).hint("name it with -f, or give another directory as the context")
}

// customFrontend reports whether something else than a Dockerfile may be read.
func customFrontend(flags *pflag.FlagSet) bool {
	args, err := flags.GetStringArray("build-arg")
	return err == nil && slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "BUILDKIT_SYNTAX") })
}

// readsStdin reports whether the build itself needs standard input.
func readsStdin(flags *pflag.FlagSet, contextPath string) bool {
	file, err := flags.GetString("file")
	return contextPath == "-" || err == nil && file == "-"
}
