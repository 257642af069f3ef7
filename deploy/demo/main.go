// Command demo shows depot from the first start to the last: it starts depotd in a temporary directory, builds
// examples/hello on a machine that must start first, runs the result out of the exported image, builds again to show the
// cache, prints where the time went, stops everything, and checks that nothing is left.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	bin := flag.String("bin", "bin", "directory of depotd, depotctl and the tools of machines")
	example := flag.String("example", "examples/hello", "what to build")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := show(ctx, *bin, *example)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// title starts a chapter of the demo.
func title(format string, args ...any) {
	fmt.Printf("\n\033[1m── %s\033[0m\n", fmt.Sprintf(format, args...))
}

// show is the demo: each chapter is a line of it. What it started is stopped and checked whichever chapter fails.
func show(ctx context.Context, bin, example string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, fmt.Errorf("the demo took more than ten minutes"))
	defer cancel()
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("the local provider makes namespaces and needs root: sudo make demo")
	}
	dir, err := os.MkdirTemp("", "depot-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	title("depotd: bus, API server and cloud-agent in one process, state in %s", dir)
	d, err := start(ctx, bin, dir)
	if err != nil {
		return err
	}
	defer func() {
		title("stop everything")
		if stopErr := d.stop(); err == nil {
			err = stopErr
		}
	}()

	title("build %s: one static binary, which is all its Dockerfile needs", example)
	source, err := prepare(ctx, example, dir)
	if err != nil {
		return err
	}
	image := filepath.Join(dir, "hello.tar")
	cold, err := d.build(ctx, source, image)
	if err != nil {
		return err
	}

	title("run the binary out of the exported image")
	if err := runImage(ctx, image, filepath.Join(dir, "rootfs")); err != nil {
		return err
	}

	title("build again: every step comes from the cache")
	warm, err := d.build(ctx, source, image)
	if err != nil {
		return err
	}
	if warm.cached == 0 || warm.ran > 0 {
		return fmt.Errorf("the second build ran %d steps and took %d from the cache", warm.ran, warm.cached)
	}

	title("where the time went")
	return d.stages(ctx, cold, warm)
}

// prepare copies the example and puts its static binary into the copy.
func prepare(ctx context.Context, example, dir string) (string, error) {
	source := filepath.Join(dir, "source")
	if err := os.CopyFS(source, os.DirFS(example)); err != nil {
		return "", fmt.Errorf("copy %s: %w", example, err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", filepath.Join(source, "hello"), "./"+example)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build the binary of %s: %w", example, err)
	}
	return source, nil
}
