package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const cachedDockerfile = `FROM scratch AS base
COPY a /a
FROM scratch
COPY --from=base /a /b
COPY c /c
`

// cached compares whole processes: the same build, all of it in the cache, on the same builder.
func (b *bench) cached(ctx context.Context) error {
	source, err := b.folder("cached")
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"Dockerfile": cachedDockerfile, "a": "a", "c": "c"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	held, err := acquire(ctx, b.conn, "")
	if err != nil {
		return err
	}
	defer func() { _ = release(ctx, b.conn, held) }()
	holding, stop := context.WithCancel(ctx)
	defer stop()
	go hold(holding, b.conn, held)
	clients, err := b.clients(ctx, held, source)
	if err != nil {
		return err
	}
	times := map[string]sample{}
	for i := range b.rounds + 2 { // the first two fill caches
		for j := range clients {
			c := clients[(i+j)%len(clients)]
			started := time.Now()
			if _, err := output(c.command()); err != nil {
				return err
			}
			if i >= 2 {
				times[c.name] = append(times[c.name], time.Since(started))
			}
		}
	}
	heading(fmt.Sprintf("fully cached build, whole process, %d interleaved rounds on one builder", b.rounds), "ratio")
	for _, c := range clients {
		row(c.name, times[c.name], times["docker-buildx"])
	}
	return nil
}

// client is one way to run the build.
type client struct {
	name    string
	command func() *exec.Cmd
}

func (b *bench) clients(ctx context.Context, held *lease, source string) ([]client, error) {
	dir, err := b.folder("certificates")
	if err != nil {
		return nil, err
	}
	f, err := held.write(dir)
	if err != nil {
		return nil, err
	}
	address := "tcp://" + held.view.Addresses[0]
	buildx := []string{"BUILDX_CONFIG=" + filepath.Join(b.dir, "buildx"), "DOCKER_CONFIG=" + filepath.Join(b.dir, "docker")}
	options := fmt.Sprintf("cacert=%s,cert=%s,key=%s,servername=%s", f.ca, f.cert, f.key, held.view.ServerName)
	if _, err := output(b.tool(ctx, buildx, "docker-buildx", "create", "--name", "held", "--driver", "remote", "--driver-opt", options, address)); err != nil {
		return nil, err
	}
	return []client{
		{"docker-buildx", func() *exec.Cmd {
			return b.tool(ctx, buildx, "docker-buildx", "--builder", "held", "build", "--progress=plain", source)
		}},
		{"depotctl", func() *exec.Cmd {
			return b.tool(ctx, nil, "depotctl", "build", "--progress=plain", source)
		}},
		{"buildctl", func() *exec.Cmd {
			return b.tool(ctx, nil, "buildctl", "--addr", address, "--tlscacert", f.ca, "--tlscert", f.cert, "--tlskey", f.key,
				"--tlsservername", held.view.ServerName, "build", "--progress=plain", "--frontend", "dockerfile.v0",
				"--local", "context="+source, "--local", "dockerfile="+source)
		}},
	}, nil
}
