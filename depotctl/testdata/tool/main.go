// Command tool is what the RUN steps of the tests execute: there is no registry to take a shell from.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("tool")
		return
	}
	switch verb, args := os.Args[1], os.Args[2:]; verb {
	case "say":
		fmt.Println(args[0])
	case "exit":
		fmt.Println("about to fail")
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "sleep":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			panic(err)
		}
		fmt.Println("sleeping")
		time.Sleep(d)
	case "spin": // keeps every processor busy and says so
		d, err := time.ParseDuration(args[0])
		if err != nil {
			panic(err)
		}
		for range 64 {
			go func() {
				for {
				}
			}()
		}
		time.Sleep(d)
	default:
		fmt.Fprintf(os.Stderr, "unknown verb %q\n", verb)
		os.Exit(2)
	}
}
