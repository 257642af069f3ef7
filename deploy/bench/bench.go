package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/deploy/instance"
)

// bench is a depotd of its own and a user's connection to it.
type bench struct {
	options
	dir  string
	inst *instance.Instance
	conn *bus.Conn
}

func start(ctx context.Context, o options, dir string) (*bench, error) {
	b := &bench{options: o, dir: dir}
	inst, err := instance.Start(ctx, instance.Config{Bin: o.bin, Dir: dir, Args: []string{"--max-machines", fmt.Sprint(o.cold + 2)}})
	if err != nil {
		return nil, err
	}
	b.inst = inst
	if b.conn, err = inst.Connect(ctx, "bench"); err != nil {
		return nil, errors.Join(err, inst.Stop())
	}
	return b, nil
}

func (b *bench) stop() error { return errors.Join(b.conn.Close(), b.inst.Stop()) }

// tool is a command among the built programs and tools.
func (b *bench) tool(ctx context.Context, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, name), args...)
	cmd.Env = append(b.inst.Env(), env...)
	return cmd
}

// output runs a command, and shows what it said if it fails.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return string(out), nil
}

// folder makes a directory of the bench.
func (b *bench) folder(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	return dir, os.MkdirAll(dir, 0o700)
}
