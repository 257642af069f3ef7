package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// way is one way to the same daemon.
type way struct {
	name    string
	address string
	set     *set
}

// transfers compares uploads of a context and exports of a tar through the front and through BuildKit's own TLS.
func (b *bench) transfers(ctx context.Context) (err error) {
	d, err := b.startBoth(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	source, err := b.folder("bulk")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "Dockerfile"), []byte("FROM scratch\nCOPY big /big\n"), 0o600); err != nil {
		return err
	}
	up, down := map[string]*transferred{}, map[string]*transferred{}
	for _, w := range d.ways {
		up[w.name], down[w.name] = &transferred{}, &transferred{}
	}
	for i := range b.bulk {
		for j := range d.ways {
			w := d.ways[(i+j)%len(d.ways)]
			if err := randomFile(filepath.Join(source, "big"), b.mb); err != nil {
				return err
			}
			if err := b.transfer(ctx, d, w, source, "transferring context", up[w.name]); err != nil {
				return err
			}
			if err := b.transfer(ctx, d, w, source, "sending tarball", down[w.name], "--output", "type=tar,dest=/dev/null"); err != nil {
				return err
			}
		}
	}
	b.report("upload of a context", d.ways, up)
	b.report("export of a tar", d.ways, down)
	fmt.Println("  cpu-s: of the daemon and, where it is in the way, the front; not of the client")
	return nil
}

// report prints one direction; the first way is what the others are compared with.
func (b *bench) report(title string, ways []way, t map[string]*transferred) {
	fmt.Printf("\n%s, %d times %d MB\n  %-44s %10s %10s %10s %8s\n", title, b.bulk, b.mb, "", "p50", "MB/s", "cpu-s/GB", "ratio")
	for _, w := range ways {
		rate := t[w.name].rate(b.mb)
		perGB := t[w.name].cpu.median().Seconds() * 1000 / float64(b.mb)
		fmt.Printf("  %-44s %10s %10.0f %10.2f %8.2f\n", w.name, ms(t[w.name].took.median()), rate, perGB, rate/t[ways[0].name].rate(b.mb))
	}
}

// transferred is the times of one direction one way.
type transferred struct{ took, cpu sample }

func (t *transferred) rate(mb int) float64 { return float64(mb) / t.took.median().Seconds() }

// transfer runs one build and reads from its progress how long the phase took.
func (b *bench) transfer(ctx context.Context, d *both, w way, source, phase string, into *transferred, args ...string) error {
	before, err := d.cpu()
	if err != nil {
		return err
	}
	c := w.set.client
	all := append([]string{
		"--addr", "tcp://" + w.address, "--tlscacert", c.ca, "--tlscert", c.cert, "--tlskey", c.key, "--tlsservername", w.set.lease,
		"build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", "context=" + source, "--local", "dockerfile=" + source,
	}, args...)
	out, err := output(b.tool(ctx, nil, "buildctl", all...))
	if err != nil {
		return err
	}
	took, err := phaseTime(out, phase)
	if err != nil {
		return err
	}
	after, err := d.cpu()
	if err != nil {
		return err
	}
	into.took, into.cpu = append(into.took, took), append(into.cpu, after-before)
	return nil
}

var doneLine = regexp.MustCompile(`([0-9.]+)s done$`)

// phaseTime finds the longest of a phase in plain progress, "#4 transferring context: 500.12MB 1.9s done": there is
// also the transfer of .dockerignore.
func phaseTime(out, phase string) (longest time.Duration, err error) {
	for line := range strings.SplitSeq(out, "\n") {
		m := doneLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || !strings.Contains(line, phase) {
			continue
		}
		took, err := time.ParseDuration(m[1] + "s")
		if err != nil {
			return 0, err
		}
		longest = max(longest, took)
	}
	if longest == 0 {
		return 0, fmt.Errorf("no time of %q in:\n%s", phase, out)
	}
	return longest, nil
}

// randomFile writes mb times 10^6 bytes that no cache has seen and nothing can compress.
func randomFile(path string, mb int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, int64(mb)*1_000_000)
	return errors.Join(err, f.Close())
}
