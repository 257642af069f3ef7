package bus_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

type record struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func openRecords(t *testing.T) *bus.Bucket[record] {
	t.Helper()
	b, err := bus.OpenBucket[record](t.Context(), bustest.New(t).Control, "records")
	require.NoError(t, err)
	return b
}

func TestBucket_LivesThroughCreateUpdateDeleteAndCreateAgain(t *testing.T) {
	t.Parallel()
	b := openRecords(t)
	ctx := t.Context()

	_, _, err := b.Get(ctx, "prj-a.amd64")
	require.ErrorIs(t, err, bus.ErrNotFound)

	first, err := b.Create(ctx, "prj-a.amd64", record{Name: "a"})
	require.NoError(t, err)
	_, err = b.Create(ctx, "prj-a.amd64", record{Name: "other"})
	require.ErrorIs(t, err, bus.ErrConflict)

	second, err := b.Update(ctx, "prj-a.amd64", record{Name: "a", Count: 1}, first)
	require.NoError(t, err)
	require.Greater(t, second, first)
	_, err = b.Update(ctx, "prj-a.amd64", record{Name: "stale"}, first)
	require.ErrorIs(t, err, bus.ErrConflict)
	require.ErrorIs(t, b.Delete(ctx, "prj-a.amd64", first), bus.ErrConflict)

	got, at, err := b.Get(ctx, "prj-a.amd64")
	require.NoError(t, err)
	require.Equal(t, record{Name: "a", Count: 1}, got)
	require.Equal(t, second, at)

	require.NoError(t, b.Delete(ctx, "prj-a.amd64", second))
	_, _, err = b.Get(ctx, "prj-a.amd64")
	require.ErrorIs(t, err, bus.ErrNotFound)
	_, err = b.Update(ctx, "prj-a.amd64", record{Name: "ghost"}, second)
	require.ErrorIs(t, err, bus.ErrConflict, "a deleted record does not come back by an update")
	list, err := b.List(ctx)
	require.NoError(t, err)
	require.Empty(t, list)

	again, err := b.Create(ctx, "prj-a.amd64", record{Name: "b"})
	require.NoError(t, err)
	require.Greater(t, again, second)
	_, err = b.Update(ctx, "prj-a.amd64", record{Name: "ghost"}, second)
	require.ErrorIs(t, err, bus.ErrConflict, "a revision of an earlier life does not count")
}

func TestBucket_CreateRaceHasOneWinner(t *testing.T) {
	t.Parallel()
	b := openRecords(t)
	for _, deletedBefore := range []bool{false, true} {
		key := "fresh"
		if deletedBefore {
			key = "used"
			at, err := b.Create(t.Context(), key, record{})
			require.NoError(t, err)
			require.NoError(t, b.Delete(t.Context(), key, at))
		}
		var wg sync.WaitGroup
		errs := make([]error, 32)
		for i := range errs {
			wg.Go(func() { _, errs[i] = b.Create(t.Context(), key, record{Count: i + 1}) })
		}
		wg.Wait()
		winner := 0
		for i, err := range errs {
			if err == nil {
				require.Zero(t, winner, "two winners")
				winner = i + 1
				continue
			}
			require.ErrorIs(t, err, bus.ErrConflict)
		}
		got, _, err := b.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, winner, got.Count)
	}
}

func TestBucket_ModifyLosesNoIncrement(t *testing.T) {
	t.Parallel()
	b := openRecords(t)
	const writers, increments = 8, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range increments {
				_, _, err := b.Modify(t.Context(), "counter", func(cur record, _ bool) (record, bool, error) {
					cur.Count++
					return cur, true, nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, _, err := b.Get(t.Context(), "counter")
	require.NoError(t, err)
	require.Equal(t, writers*increments, got.Count)
}

func TestBucket_WatchShowsWhatIsThereThenSyncedThenChanges(t *testing.T) {
	t.Parallel()
	b := openRecords(t)
	first, err := b.Create(t.Context(), "a", record{Name: "a"})
	require.NoError(t, err)

	type seen struct {
		e      bus.Entry[record]
		synced bool
	}
	events := make(chan seen, 16)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- b.Watch(ctx, func(e bus.Entry[record], synced bool) { events <- seen{e, synced} })
	}()
	require.Equal(t, seen{e: bus.Entry[record]{Key: "a", Value: record{Name: "a"}, Revision: first}}, <-events)
	require.Equal(t, seen{synced: true}, <-events)
	second, err := b.Update(t.Context(), "a", record{Name: "b"}, first)
	require.NoError(t, err)
	require.Equal(t, seen{e: bus.Entry[record]{Key: "a", Value: record{Name: "b"}, Revision: second}}, <-events)
	require.NoError(t, b.Delete(t.Context(), "a", second))
	gone := <-events
	require.True(t, gone.e.Deleted)
	require.Equal(t, "a", gone.e.Key)
	cancel()
	require.NoError(t, <-ended)
}
