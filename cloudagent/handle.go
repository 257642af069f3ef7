package cloudagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/depotctl/depot/bus"
)

// maxTries is how often an action that fails for no known reason is carried out before that is reported: some seconds, at
// the queue's pace.
const maxTries = 3

// reportAgain is the pause before an action is carried out again because no API server took its intent or its result. That
// is no failure of the action, however often it happens.
const reportAgain = 2 * time.Second

// handle carries out one action, reports how it ended, and only then lets the queue forget it.
func (s *session) handle(ctx context.Context, d bus.Delivery[bus.Action]) error {
	action := d.Message
	log := s.log.With(slog.String("action", action.ID), slog.String("machine", string(action.Machine)), slog.String("volume", string(action.Volume)))
	unlock, err := s.rows.lock(ctx, string(action.Machine), string(action.Volume))
	if err != nil {
		return err
	}
	defer unlock()
	began := s.cfg.Now()
	defer s.wantInventory()

	err = s.do(ctx, action)
	fault, decided := errors.AsType[*bus.Fault](err)
	switch {
	case err == nil:
		log.InfoContext(ctx, "action done", slog.Duration("dur", s.cfg.Now().Sub(began)))
	case ctx.Err() != nil:
		return err
	case errors.As(err, new(*unreportedError)):
		log.WarnContext(ctx, "launch waits for an API server", slog.Any("err", err))
		return bus.Postpone(reportAgain)
	case decided:
		log.WarnContext(ctx, "action refused", slog.Any("err", err))
	case d.Attempt < maxTries:
		log.WarnContext(ctx, "action failed", slog.Int("attempt", d.Attempt), slog.Any("err", err))
		return err
	default:
		log.ErrorContext(ctx, "action failed for good", slog.Any("err", err))
		fault = bus.Faultf(bus.CodeInternal, "%s of %s failed %d times: %s", action.Kind, resource(action), d.Attempt, err).
			WithHint("see the log of the cloud-agent")
	}
	return s.reportResult(ctx, action, fault)
}

func resource(a bus.Action) string {
	if a.Machine != "" {
		return "machine " + string(a.Machine)
	}
	return "volume " + string(a.Volume)
}

// reportResult fails when the result must be reported again, which means that the action is carried out again.
func (s *session) reportResult(ctx context.Context, action bus.Action, fault *bus.Fault) error {
	_, err := bus.ReportResult.Call(ctx, s.conn, bus.ActionResult{
		Action: action.ID, Kind: action.Kind, Machine: action.Machine, Attempt: action.Attempt, Volume: action.Volume,
		Fault: fault, At: s.cfg.Now().UTC(),
	})
	if refusal, ok := errors.AsType[*bus.Fault](err); ok && permanent(refusal.Code) {
		return bus.Reject(err) // nobody wants to know; the dead letters keep it
	}
	if err != nil {
		s.log.WarnContext(ctx, "cannot report a result", slog.String("action", action.ID), slog.Any("err", err))
		return bus.Postpone(reportAgain)
	}
	return nil
}

func permanent(code bus.Code) bool {
	switch code {
	case bus.CodeInvalid, bus.CodeNotFound, bus.CodeConflict, bus.CodeForbidden:
		return true
	case bus.CodeNoCapacity, bus.CodeUnavailable, bus.CodeInternal:
	}
	return false
}

// do carries out an action, or refuses it.
func (s *session) do(ctx context.Context, action bus.Action) error {
	if err := action.Validate(); err != nil {
		return bus.Faultf(bus.CodeInvalid, "action is not understood: %s", err)
	}
	if action.Machine != "" {
		if newest, ok := s.fence.pass(action.Machine, action.Attempt, s.cfg.Now()); !ok {
			return bus.Faultf(bus.CodeConflict, "attempt %d of machine %s is over: the newest is %d", action.Attempt, action.Machine, newest)
		}
	}
	machine := MachineRef{Connection: s.connection, Machine: action.Machine, Attempt: action.Attempt}
	volume := VolumeRef{Connection: s.connection, Volume: action.Volume}
	cloud := s.cfg.Provider
	switch action.Kind {
	case bus.CreateMachine:
		return s.createMachine(ctx, machine, action)
	case bus.StartMachine:
		return cloud.StartMachine(ctx, machine)
	case bus.StopMachine:
		return cloud.StopMachine(ctx, machine)
	case bus.DeleteMachine:
		return cloud.DeleteMachine(ctx, machine)
	case bus.CreateVolume:
		if err := s.cfg.Limits.checkVolume(action.SizeGB, action.Architecture); err != nil {
			return err
		}
		return cloud.CreateVolume(ctx, VolumeSpec{VolumeRef: volume, Project: action.Project, Architecture: action.Architecture, SizeGB: action.SizeGB})
	case bus.AttachVolume:
		return cloud.AttachVolume(ctx, machine, action.Volume)
	case bus.DetachVolume:
		return cloud.DetachVolume(ctx, machine, action.Volume)
	case bus.DeleteVolume:
		return cloud.DeleteVolume(ctx, volume)
	}
	return bus.Faultf(bus.CodeInvalid, "%q is not an action", action.Kind)
}

// createMachine launches within the limits. Each launch is announced, with the hash of its nonce, before it is tried.
func (s *session) createMachine(ctx context.Context, machine MachineRef, action bus.Action) error {
	if err := s.cfg.Limits.checkArchitecture(action.Architecture); err != nil {
		return err
	}
	release, err := s.quota.take(ctx, action.Machine, func(ctx context.Context) (Listing, error) {
		return s.cfg.Provider.List(ctx, s.connection)
	})
	if err != nil {
		return err
	}
	defer release()
	nonce := bus.LaunchNonce(s.cfg.Bus.Token, action.Machine, action.Attempt)
	announce := func(ctx context.Context, offering string) error {
		_, err := bus.ReportIntent.Call(ctx, s.conn, bus.LaunchIntent{
			Machine: action.Machine, Attempt: action.Attempt, NonceHash: nonce.Hash(), Offering: offering,
		})
		if refusal, ok := errors.AsType[*bus.Fault](err); err != nil && (!ok || !permanent(refusal.Code)) {
			return &unreportedError{err}
		}
		return err
	}
	return s.cfg.Provider.CreateMachine(ctx, MachineSpec{
		MachineRef: machine, Project: action.Project, Architecture: action.Architecture, Volume: action.Volume,
		Nonce: nonce, BusURL: s.cfg.BusURL, BusCA: s.cfg.BusCA,
	}, announce)
}

// unreportedError means that no API server has taken an intent. It is not the cloud's failure, and is never reported as one.
type unreportedError struct{ err error }

func (e *unreportedError) Error() string { return fmt.Sprintf("report intent: %s", e.err) }
