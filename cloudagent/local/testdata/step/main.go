// Command step is what a Dockerfile of the tests runs in an image that has nothing else.
package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	switch os.Args[1] {
	case "show": // FILE...: what runc gave this step
		for _, file := range os.Args[2:] {
			text, err := os.ReadFile(file)
			must(err)
			fmt.Printf("%s:\n%s", file, text)
		}
	case "addresses":
		addresses, err := net.InterfaceAddrs()
		must(err)
		fmt.Println("addresses:", addresses)
	case "dial": // ADDRESS: succeeds if somebody answers
		conn, err := net.DialTimeout("tcp", os.Args[2], 3*time.Second)
		must(err)
		_, err = conn.Write([]byte("x"))
		must(err)
		answer := make([]byte, 64)
		must(conn.SetDeadline(time.Now().Add(3 * time.Second)))
		n, err := conn.Read(answer)
		must(err)
		fmt.Println("answer:", string(answer[:n]))
	case "nodial": // ADDRESS: succeeds if nobody answers
		conn, err := net.DialTimeout("tcp", os.Args[2], 3*time.Second)
		if err == nil {
			fmt.Println("reached", conn.RemoteAddr())
			os.Exit(1)
		}
		fmt.Println("not reached:", err)
	case "write": // FILE WORD...
		must(os.WriteFile(os.Args[2], []byte(strings.Join(os.Args[3:], " ")), 0o600))
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
