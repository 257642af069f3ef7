package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/depotctl/depot/bus"
)

// stages asks the API server for the story of both builds, and prints how long each stage took.
func (d *demo) stages(ctx context.Context, cold, warm result) error {
	conn, err := d.Connect(ctx, "demo")
	if err != nil {
		return fmt.Errorf("connect to depotd: %w", err)
	}
	defer conn.Close()
	list, err := bus.ListRecentBuilds.Call(ctx, conn, bus.ListBuilds{Limit: 2})
	if err != nil {
		return fmt.Errorf("list builds: %w", err)
	}
	if len(list.Builds) != 2 {
		return fmt.Errorf("list builds: there are %d, want the two of this demo", len(list.Builds))
	}
	slices.Reverse(list.Builds) // the newest comes first
	for i, r := range []result{cold, warm} {
		if err := d.story(ctx, conn, list.Builds[i], r); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) story(ctx context.Context, conn *bus.Conn, b bus.BuildView, r result) error {
	story, err := bus.ReplayBuild.Call(ctx, conn, bus.BuildRef{Build: b.Build})
	if err != nil {
		return fmt.Errorf("replay build %s: %w", b.Build, err)
	}
	for _, l := range b.Leases {
		d.machines = append(d.machines, string(l.Machine))
	}
	fmt.Printf("build %s: %s, %d steps run, %d from the cache\n", b.Build, b.State, r.ran, r.cached)
	previous, since := bus.StageQueued, b.CreatedAt
	for _, e := range story.Events {
		if e.Stage == "" || e.Stage == previous {
			continue
		}
		printStage(string(previous), e.Time.Sub(since))
		previous, since = e.Stage, e.Time
	}
	if since.Before(b.ReadyAt) {
		printStage(string(previous), b.ReadyAt.Sub(since))
	}
	printStage("building", b.EndedAt.Sub(b.ReadyAt))
	printStage("depotctl, from start to end", r.took)
	return nil
}

func printStage(name string, took time.Duration) {
	fmt.Printf("  %-28s %7.0f ms\n", name, float64(took.Microseconds())/1000)
}
