package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/depotctl/depot/bus"
)

// warmAcquisition compares the acquisition of a builder that runs with a plain mTLS connection to it.
func (b *bench) warmAcquisition(ctx context.Context) error {
	held, err := acquire(ctx, b.conn, "")
	if err != nil {
		return err
	}
	defer func() { _ = release(ctx, b.conn, held) }()
	holding, stop := context.WithCancel(ctx)
	defer stop()
	go hold(holding, b.conn, held)
	var plain, total, create, ready, connect sample
	for range b.warm {
		took, err := held.handshake(ctx)
		if err != nil {
			return err
		}
		plain = append(plain, took)
		l, err := acquire(ctx, b.conn, "")
		if err != nil {
			return err
		}
		total, create = append(total, l.took.total()), append(create, l.took.create)
		ready, connect = append(ready, l.took.ready), append(connect, l.took.connect)
		if err := release(ctx, b.conn, l); err != nil {
			return err
		}
	}
	heading(fmt.Sprintf("acquisition of a running builder, %d times", b.warm), "")
	row("plain mTLS connection to it", plain, nil)
	row("acquisition, until connected", total, nil)
	row("  request stored", create, nil)
	row("  certificates here", ready, nil)
	row("  connected", connect, nil)
	fmt.Printf("  p50 above the plain connection: %s\n", ms(total.median()-plain.median()))
	return nil
}

// coldAcquisition starts a machine per round, each for a project of its own, beside a bare buildkitd on a new root.
func (b *bench) coldAcquisition(ctx context.Context) error {
	var bare, total sample
	at := map[bus.Stage]sample{}
	for i := range b.cold {
		took, err := b.bareDaemon(ctx, i)
		if err != nil {
			return err
		}
		bare = append(bare, took)
		project := fmt.Sprintf("cold-%d", i)
		if _, err := bus.CreateProject.Call(ctx, b.conn, bus.ProjectCreate{Name: project}); err != nil {
			return err
		}
		l, err := acquire(ctx, b.conn, project)
		if err != nil {
			return err
		}
		total = append(total, l.took.total())
		for stage, d := range l.took.at {
			at[stage] = append(at[stage], d)
		}
		if err := release(ctx, b.conn, l); err != nil {
			return err
		}
	}
	heading(fmt.Sprintf("acquisition of a builder that must start, %d machines with empty caches", b.cold), "ratio")
	row("bare buildkitd, from exec until it answers", bare, bare)
	row("acquisition, until connected", total, bare)
	for _, stage := range []bus.Stage{bus.StageLaunching, bus.StageBooting, bus.StageRegistered, bus.StageStarting, bus.StageServing} {
		if s := at[stage]; s != nil {
			row("  heard of: "+string(stage), s, nil)
		}
	}
	fmt.Printf("  p50 above BuildKit's own start: %s\n", ms(total.median()-bare.median()))
	return nil
}

// bareDaemon measures what BuildKit itself needs, with a bridge for RUN steps as machines have it: from exec until it
// answers on its socket.
func (b *bench) bareDaemon(ctx context.Context, i int) (time.Duration, error) {
	root, err := b.folder(fmt.Sprintf("bare-%d", i))
	if err != nil {
		return 0, err
	}
	config := filepath.Join(root, "buildkitd.toml")
	text := fmt.Sprintf("[worker.oci]\nnetworkMode = \"bridge\"\nbridgeName = \"bench0\"\nbridgeSubnet = \"10.10.0.0/16\"\ncniBinaryPath = %q\n", b.bin)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return 0, err
	}
	d, err := startDaemon(ctx, b, root, "--config", config)
	if err != nil {
		return 0, err
	}
	return d.took, d.stop()
}

// daemon is a buildkitd that the bench runs itself.
type daemon struct {
	cmd  *exec.Cmd
	took time.Duration // from exec until it answered
}

// startDaemon runs buildkitd in a network namespace of its own if it has a bridge, and waits until it serves on a unix
// socket in root.
func startDaemon(ctx context.Context, b *bench, root string, args ...string) (*daemon, error) {
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	address := "unix://" + filepath.Join(root, "sock")
	cmd := b.tool(ctx, []string{"PATH=" + b.bin + ":" + os.Getenv("PATH")}, "buildkitd", append([]string{"--root", root, "--addr", address, "--containerd-worker=false"}, args...)...)
	if slices.Contains(args, "--config") {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	cmd.Stderr = log
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd}
	for {
		if err := ask(ctx, address); err == nil {
			d.took = time.Since(started)
			return d, nil
		}
		if time.Since(started) > time.Minute {
			text, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("buildkitd did not answer within a minute\n%s", text), d.stop())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), d.stop())
		case <-time.After(time.Millisecond):
		}
	}
}

func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = d.cmd.Wait() // buildkitd ends with 1 when it is told to
	return nil
}
