package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/depotctl/depot/bus"
)

// initArgument makes an executable that calls MaybeInit the first process of a machine.
const initArgument = "depot-machine-init"

// The descriptors that the first process of a machine gets besides its log.
const (
	fdControl = 3 // a socket to the provider: two JSON values in, one out
	fdAlive   = 4 // the lock that says that the machine lives
)

// upMark follows the process id in the lock file once the program was started.
const upMark = "up"

// bootSpec is the first thing that the provider tells the first process of a machine.
type bootSpec struct {
	Machine bus.MachineID `json:"machine"`
	Dir     string        `json:"dir"`     // of the machine
	BusDir  string        `json:"bus_dir"` // of the bus's socket
	Program string        `json:"program"` // machineagent
}

// bootReply is the first process's answer, after the program was started or could not be.
type bootReply struct {
	Error string `json:"error"`
}

// MaybeInit turns the process into the first one of a machine, and does not return, if it was started as that. Call it at
// the very beginning of main in every program that uses the local provider, and of TestMain in its tests.
func MaybeInit() {
	if len(os.Args) < 2 || os.Args[1] != initArgument || os.Getpid() != 1 {
		return
	}
	runtime.LockOSThread() // a cgroup namespace is entered by one thread, which must then start the program
	status, err := runInit()
	if err != nil {
		fmt.Fprintln(os.Stderr, "depot machine:", err)
		status = 1
	}
	os.Exit(status) //nolint:forbidigo // this is a main of its own
}

// runInit returns the exit status of the machine.
func runInit() (int, error) {
	syscall.CloseOnExec(fdControl)
	syscall.CloseOnExec(fdAlive)
	control := os.NewFile(fdControl, "control")
	defer control.Close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)

	dir, child, err := boot(control)
	reply := bootReply{}
	if err != nil {
		reply.Error = err.Error()
	}
	// The machine goes on without a provider that ended meanwhile: the next one finds it by its lock.
	_ = json.NewEncoder(control).Encode(reply)
	_ = control.Close()
	if err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = syscall.Kill(child, s.(syscall.Signal)) //nolint:errcheck,forcetypeassert // all signals of this system are of this type
		}
	}()
	status, err := reap(child)
	if err != nil {
		return 1, err
	}
	return exitStatus(dir, status)
}

// boot prepares the namespaces and starts the program.
func boot(control *os.File) (dir string, child int, err error) {
	if err := announcePid(); err != nil {
		return "", 0, err
	}
	decoder := json.NewDecoder(control)
	var spec bootSpec
	if err := decoder.Decode(&spec); err != nil {
		return "", 0, fmt.Errorf("read what to boot: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Machine)); err != nil {
		return "", 0, fmt.Errorf("set host name: %w", err)
	}
	if err := prepareMounts(spec); err != nil {
		return "", 0, err
	}
	var link linkSpec
	if err := decoder.Decode(&link); err != nil {
		return "", 0, fmt.Errorf("read network configuration: %w", err)
	}
	if err := configureLink(link); err != nil {
		return "", 0, err
	}
	child, err = syscall.ForkExec(spec.Program, []string{spec.Program, "--user-data", filepath.Join(spec.Dir, userDataFile)}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), "TMPDIR="+filepath.Join(spec.Dir, tmpDir)),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return "", 0, fmt.Errorf("start %s: %w", spec.Program, err)
	}
	if _, err := keepAlive.WriteString(upMark + "\n"); err != nil {
		return "", 0, fmt.Errorf("write that the machine is up: %w", err)
	}
	return spec.Dir, child, nil
}

// announcePid writes the process id that the host knows this process by into the lock file. Whoever reads it while the
// lock is held has the right one. It is taken from the host's /proc, which is still mounted.
func announcePid() error {
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("find the own process id: %w", err)
	}
	alive := os.NewFile(fdAlive, aliveFile) // never closed: the lock lives as long as this process
	runtime.SetFinalizer(alive, nil)
	keepAlive = alive
	if _, err := alive.WriteString(pid + "\n"); err != nil {
		return fmt.Errorf("write the own process id: %w", err)
	}
	return nil
}

// keepAlive keeps the garbage collector from closing the lock of this process's life.
var keepAlive *os.File

// reap collects every process that ends in the namespace, until the program itself does.
func reap(child int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for processes: %w", err)
		case pid == child && (status.Exited() || status.Signaled()):
			return status, nil
		}
	}
}

// exitStatus leaves for the provider why the machine ended.
func exitStatus(dir string, status syscall.WaitStatus) (int, error) {
	reason, code := fmt.Sprintf("machineagent exited with status %d", status.ExitStatus()), status.ExitStatus()
	if status.Signaled() {
		reason, code = fmt.Sprintf("machineagent was ended by signal %d (%s)", status.Signal(), status.Signal()), 128+int(status.Signal())
	}
	return code, os.WriteFile(filepath.Join(dir, reasonFile), []byte(reason+"\n"), 0o600)
}
