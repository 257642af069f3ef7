// Command step is what the RUN steps of these tests execute: static, so that its image needs no base.
package main

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "step:", err)
		os.Exit(7)
	}
}

func run(verb string, args []string) error {
	switch verb {
	case "write": // FILE TEXT
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "count": // COUNTER FILE: raises the counter and copies it
		before, _ := os.ReadFile(args[0])
		after := append(before, '.')
		if err := os.WriteFile(args[0], after, 0o644); err != nil {
			return err
		}
		return os.WriteFile(args[1], fmt.Append(nil, len(after)), 0o644)
	case "sleep": // DURATION: says so at once and at its end
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		fmt.Println("step: asleep")
		time.Sleep(d)
		fmt.Println("step: awake")
		return nil
	case "dial": // ADDRESS...: succeeds if none of them answers
		for _, address := range args {
			conn, err := net.DialTimeout("tcp", address, 2*time.Second)
			if err == nil {
				conn.Close()
				return fmt.Errorf("%s answered", address)
			}
			fmt.Println("step: no answer from", address+":", err)
		}
		return nil
	case "sum": // FILE SHA256
		text, err := os.ReadFile(args[0])
		if sum := fmt.Sprintf("%x", sha256.Sum256(text)); err == nil && sum != args[1] {
			err = fmt.Errorf("%s has the sum %s", args[0], sum)
		}
		return err
	}
	return fmt.Errorf("what is %s?", verb)
}
