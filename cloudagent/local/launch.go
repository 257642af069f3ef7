package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
	"github.com/depotctl/depot/cloudagent"
)

// logLimit is the size from which on a machine's log is put aside at the next boot.
const logLimit = 16 << 20

// environment is what of this process's environment a machine inherits: never a DEPOT_ variable, which may be a token.
var environment = []string{
	"PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
}

// userData renders what a machine boots with, up to its addresses.
func (p *Provider) userData(spec cloudagent.MachineSpec, cache string) bus.UserData {
	url := spec.BusURL
	if url == "" {
		url = "nats://bus" // in process; what is dialed is the socket
	}
	data := bus.UserData{
		Machine: spec.Machine, Attempt: spec.Attempt, Architecture: spec.Architecture, Nonce: spec.Nonce.Reveal(),
		BusURL: url, BusCA: spec.BusCA, BusSocket: filepath.Join(insideBus, busSocket),
		StateDir: insideState, CacheDir: cache, Attestor: "nonce",
	}
	p.renewUserData(&data)
	return data
}

// renewUserData sets what depends on the host of today.
func (p *Provider) renewUserData(data *bus.UserData) {
	tools := p.cfg.Tools
	data.Buildkitd, data.Runc, data.CNIDir = tools.Buildkitd, tools.Runc, tools.CNIDir
	data.HostNetwork = tools.Check(false) != nil // Check has passed: only plugins can be missing
	data.BuildSubnet, data.Registries = buildSubnet, p.cfg.Registries
}

// launch boots a machine whose record is written, and returns when its program runs. Nothing of an earlier boot is left
// when it starts, and nothing of this one when it fails.
func (p *Provider) launch(ctx context.Context, rec *machineRecord, data bus.UserData) (err error) {
	if err := p.awaitEnd(ctx, rec.Machine); err != nil {
		return err
	}
	if err := p.prepareFiles(ctx, rec.Machine, &data); err != nil {
		return err
	}
	alive, err := tryLock(p.machineFile(rec.Machine, aliveFile))
	if err != nil || alive == nil {
		return errors.Join(err, fmt.Errorf("machine %s lives already", rec.Machine))
	}
	defer alive.unlock() // the first process has it, too
	if err := alive.file.Truncate(0); err != nil {
		return err
	}
	control, pid, err := p.startInit(rec.Machine, alive)
	if err != nil {
		return fmt.Errorf("start first process of machine %s: %w", rec.Machine, err)
	}
	defer control.Close()
	defer func() {
		if err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // ours, and not reaped: the id is right
		}
	}()
	if err := p.boot(ctx, rec, pid, control, data); err != nil {
		return fmt.Errorf("boot machine %s: %w", rec.Machine, err)
	}
	rec.Launched = true
	return p.writeMachine(*rec)
}

// boot tells the first process what to do, and gives it its network meanwhile.
func (p *Provider) boot(ctx context.Context, rec *machineRecord, pid int, control net.Conn, data bus.UserData) error {
	if err := control.SetDeadline(time.Now().Add(bootLimit)); err != nil {
		return err
	}
	encoder := json.NewEncoder(control)
	spec := bootSpec{Machine: rec.Machine, Dir: p.machineDir(rec.Machine), BusDir: filepath.Join(p.cfg.Dir, busDir), Program: p.cfg.Tools.Machineagent}
	if err := encoder.Encode(spec); err != nil {
		return err
	}
	preferred, _ := netip.ParsePrefix(rec.Subnet)
	subnet, err := connectMachine(ctx, rec.Machine, pid, p.cfg.Subnet, preferred)
	if err != nil {
		return err
	}
	rec.Subnet = subnet.String()
	if err := p.writeMachine(*rec); err != nil { // before the program runs: a crash from here on must not lose its address
		return err
	}
	data.Listen = net.JoinHostPort(machinePrefix(subnet).Addr().String(), strconv.Itoa(p.cfg.Port))
	data.Addresses = []string{data.Listen}
	if err := data.Validate(); err != nil {
		return fmt.Errorf("render user data: %w", err)
	}
	if err := writeRecord(p.machineFile(rec.Machine, userDataFile), data); err != nil {
		return err
	}
	// A first process that has failed already does not read this, but its answer says why.
	sent := encoder.Encode(linkSpec{Address: machinePrefix(subnet), Gateway: hostPrefix(subnet).Addr()})
	var reply bootReply
	if err := json.NewDecoder(control).Decode(&reply); err != nil {
		return fmt.Errorf("its first process ended, or hangs: %w; the end of its log: %s", errors.Join(sent, err), p.logTail(rec.Machine))
	}
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	return sent
}

// logTail returns the end of a machine's log: a launch that failed removes the file.
func (p *Provider) logTail(id bus.MachineID) string {
	const limit = 2000
	text := readText(p.LogPath(id))
	return text[max(0, len(text)-limit):]
}

// prepareFiles makes what the machine needs before it boots, and decides on its nameservers.
func (p *Provider) prepareFiles(ctx context.Context, id bus.MachineID, data *bus.UserData) error {
	for _, dir := range []string{stateDir, tmpDir, cacheDir} {
		if err := os.MkdirAll(p.machineFile(id, dir), 0o700); err != nil {
			return err
		}
	}
	resolver := findResolver(resolvers)
	if len(p.cfg.Nameservers) > 0 {
		resolver.Nameservers = p.cfg.Nameservers
	}
	if len(resolver.Nameservers) == 0 {
		p.cfg.Log.WarnContext(ctx, "this host has no nameserver that a machine can reach: give one with --nameserver", slog.String("machine", string(id)))
	}
	data.Nameservers = resolver.Nameservers
	if err := os.WriteFile(p.machineFile(id, resolvFile), []byte(resolver.render()), 0o644); err != nil { //nolint:gosec // everybody may know the nameservers
		return err
	}
	if info, err := os.Stat(p.LogPath(id)); err == nil && info.Size() > logLimit {
		if err := os.Rename(p.LogPath(id), p.LogPath(id)+".1"); err != nil {
			return err
		}
	}
	if err := os.Remove(p.machineFile(id, reasonFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// startInit executes this very program as the first process of new namespaces. It gets nothing of this process but one
// end of a socket and the lock of its life; it belongs to no session and no terminal, so that it outlives this process.
func (p *Provider) startInit(id bus.MachineID, alive *fileLock) (control net.Conn, pid int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer ours.Close()
	defer theirs.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, 0, err
	}
	defer null.Close()
	log, err := os.OpenFile(p.LogPath(id), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer log.Close()
	if control, err = net.FileConn(ours); err != nil {
		return nil, 0, err
	}
	// /proc/self/exe is this program even after an upgrade has replaced its file.
	pid, err = syscall.ForkExec("/proc/self/exe", []string{"depot-machine", initArgument, string(id)}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   inherited(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), theirs.Fd(), alive.file.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		},
	})
	if err != nil {
		return nil, 0, errors.Join(err, control.Close())
	}
	p.mu.Lock()
	p.children = append(p.children, pid)
	p.mu.Unlock()
	return control, pid, nil
}

func inherited() []string {
	env := []string{"HOME=/root"}
	for _, name := range environment {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	// Debian leaves these out of the PATH of users; iptables, which CNI plugins call, is there.
	for i, variable := range env {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			env[i] = "PATH=" + path + ":/usr/local/sbin:/usr/sbin:/sbin"
		}
	}
	return env
}
