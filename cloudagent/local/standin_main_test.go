package local

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/depotctl/depot/bus"
)

// standIn is what machines run in these tests instead of machineagent: it serves, where a machine would serve builds,
// requests that show what can be seen and done inside. It returns when it cannot.
func standIn(userData string) {
	var data bus.UserData
	if ok, err := readRecord(userData, &data); err != nil || !ok {
		fmt.Fprintln(os.Stderr, "read user data:", ok, err)
		return
	}
	listener, err := net.Listen("tcp", data.Listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		fmt.Println("shutting down")
		select {
		case daemon := <-daemons: // it closes its databases
			_ = daemon.Process.Signal(syscall.SIGTERM)
			_ = daemon.Wait()
		default:
		}
		os.Exit(0)
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		conn, err := net.DialTimeout(r.FormValue("network"), r.FormValue("address"), 2*time.Second)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprint(conn, r.FormValue("say"))
		answer := make([]byte, 64)
		n, err := conn.Read(answer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		_, _ = w.Write(answer[:n])
	})
	mux.HandleFunc("/shell", func(w http.ResponseWriter, r *http.Request) {
		out, err := exec.CommandContext(r.Context(), "/bin/sh", "-c", r.FormValue("script")).CombinedOutput()
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = w.Write(out)
	})
	mux.HandleFunc("/user-data", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(data) })
	mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	mux.HandleFunc("/deaf", func(w http.ResponseWriter, _ *http.Request) { // survivors of every polite request
		signal.Ignore(syscall.SIGTERM)
		for range 3 {
			cmd := exec.Command("/bin/sh", "-c", `trap "" TERM HUP INT; while :; do sleep 1000; done`)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}
	})
	mux.HandleFunc("/daemon", func(w http.ResponseWriter, _ *http.Request) {
		if err := serveDaemon(data); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	fmt.Println("serving", data.Listen)
	err = http.Serve(listener, mux)
	fmt.Fprintln(os.Stderr, err)
}

// daemons holds buildkitd, once it was started.
var daemons = make(chan *exec.Cmd, 1)

// serveDaemon starts buildkitd as machineagent does, on a unix socket, and gives it a plain listener beside the stand-in's.
func serveDaemon(data bus.UserData) error {
	socket, config := data.StateDir+"/buildkitd.sock", data.StateDir+"/buildkitd.toml"
	text := fmt.Sprintf("root = %q\n[grpc]\naddress = [\"unix://%s\"]\n[worker.oci]\nbinary = %q\nnetworkMode = \"bridge\"\nbridgeSubnet = %q\n",
		data.CacheDir, socket, data.Runc, data.BuildSubnet)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(data.Buildkitd, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+data.CNIDir+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	daemons <- cmd
	host, _, err := net.SplitHostPort(data.Listen)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "1234"))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				daemon, err := net.Dial("unix", socket)
				if err != nil {
					return
				}
				defer daemon.Close()
				go func() { _, _ = io.Copy(daemon, conn) }()
				_, _ = io.Copy(conn, daemon)
			}()
		}
	}()
	return nil
}
