package bus_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/bus/bustest"
)

func story(project bus.ProjectID, build bus.BuildID, n int) bus.BuildEvent {
	return bus.BuildEvent{
		Build: build, Project: project, Time: time.Date(2026, 11, 24, 0, 0, n, 0, time.UTC), State: bus.BuildWaiting, Stage: bus.StageQueued, Message: fmt.Sprint("event ", n),
	}
}

func publishStory(t *testing.T, s *bustest.Server, account string, e bus.BuildEvent) {
	t.Helper()
	require.NoError(t, bus.BuildStory.Publish(t.Context(), s.Control, account, e, string(e.Build)+e.Message, string(e.Project), string(e.Build)))
}

func TestEvents_AreSeenLiveByTheirOrganizationAlone(t *testing.T) { onEveryForm(t, eventsAreSeenLive) }

func eventsAreSeenLive(t *testing.T, s *bustest.Server) {
	mine, _ := s.Default(t)
	other := s.Organization(t)
	project, build := bus.NewProjectID(), bus.NewBuildID()
	got := map[string]chan bus.BuildEvent{}
	stranger := s.WithToken(t, s.Admit(bus.Grant{Role: bus.RoleUser, Account: other.Account, Organization: other.ID}))
	for name, c := range map[string]*bus.Conn{"user": s.User(t), "ci": s.CI(t, project), "ci of another project": s.CI(t, bus.NewProjectID()), "stranger": stranger} {
		events := make(chan bus.BuildEvent, 8)
		got[name] = events
		require.NoError(t, bus.BuildStory.Subscribe(t.Context(), c, func(e bus.BuildEvent) { events <- e }, "*", string(build)), name)
	}
	noise := story(project, bus.NewBuildID(), 9)
	publishStory(t, s, mine.Account, noise)
	publishStory(t, s, mine.Account, story(project, build, 1))
	publishStory(t, s, mine.Account, story(project, build, 2))
	for _, name := range []string{"user", "ci"} {
		require.Equal(t, story(project, build, 1), <-got[name])
		require.Equal(t, story(project, build, 2), <-got[name])
		require.Empty(t, got[name])
	}
	require.Empty(t, got["ci of another project"])
	require.Empty(t, got["stranger"])
}

func TestEvents_ReplayReturnsTheStoryOfOneBuildInOrder(t *testing.T) {
	t.Parallel()
	s := bustest.New(t)
	o, _ := s.Default(t)
	other := s.Organization(t)
	project, build := bus.NewProjectID(), bus.NewBuildID()
	none, err := bus.BuildStory.Replay(t.Context(), s.Control, o.Account, "*", string(build))
	require.NoError(t, err)
	require.Empty(t, none)

	const events = 600 // more than one batch
	for n := range events {
		publishStory(t, s, o.Account, story(project, build, n))
	}
	publishStory(t, s, o.Account, story(project, build, 0)) // the same id again
	publishStory(t, s, o.Account, story(project, bus.NewBuildID(), 1))
	publishStory(t, s, other.Account, story(project, build, 1))
	for range 3 {
		got, err := bus.BuildStory.Replay(t.Context(), s.Control, o.Account, string(project), string(build))
		require.NoError(t, err)
		require.Len(t, got, events)
		for n, e := range got {
			require.Equal(t, story(project, build, n), e)
		}
	}
	require.Zero(t, bus.Consumers(t, s.Control, "EVENTS"), "a replay left a consumer behind")
}
