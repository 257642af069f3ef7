// Command step is what the RUN steps of the cases execute: there is no registry to take a shell from.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

var verbs = map[string]func(args []string) error{
	"write": func(args []string) error { return put(args[0], args[1]) },
	"copy": func(args []string) error {
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		return put(args[1], string(text))
	},
	"env":   func(args []string) error { return put(args[1], os.Getenv(args[0])) },
	"count": count,
	"keys":  keys,
	"exit": func(args []string) error {
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		fmt.Println("this step is about to fail")
		os.Exit(code)
		return nil
	},
}

func main() {
	verb, ok := verbs[os.Args[1]]
	err := errors.New("unknown verb")
	if ok {
		err = verb(os.Args[2:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "step %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func put(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// count adds a byte to the first file and writes its length into the second.
func count(args []string) error {
	text, err := os.ReadFile(args[0])
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	text = append(text, '.')
	if err := put(args[0], string(text)); err != nil {
		return err
	}
	return put(args[1], strconv.Itoa(len(text)))
}

// keys asks the SSH agent for its identities and writes down how many it has.
func keys(args []string) error {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return err
	}
	defer conn.Close()
	const requestIdentities, identitiesAnswer = 11, 12
	if _, err := conn.Write([]byte{0, 0, 0, 1, requestIdentities}); err != nil {
		return err
	}
	var length uint32
	if err := binary.Read(conn, binary.BigEndian, &length); err != nil {
		return err
	}
	answer := make([]byte, length)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if answer[0] != identitiesAnswer {
		return fmt.Errorf("answer %d", answer[0])
	}
	var n uint32
	if err := binary.Read(bytes.NewReader(answer[1:]), binary.BigEndian, &n); err != nil {
		return err
	}
	return put(args[0], strconv.Itoa(int(n)))
}
