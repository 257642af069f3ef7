// Command hello is all that the image of this example holds, and all that its build runs: a static binary needs no
// base image, and so no registry.
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	switch {
	case len(args) == 0:
		return greet(out)
	case args[0] == "compose" && len(args) == 4:
		return compose(out, args[1], args[2], args[3])
	case args[0] == "seal" && len(args) == 3:
		return seal(out, args[1], args[2])
	}
	return errors.New("usage: hello | hello compose TEXT COUNTER RESULT | hello seal SECRET FILE")
}

// greet prints what the build composed and sealed.
func greet(out io.Writer) error {
	greeting, err := os.ReadFile("/greeting")
	if err != nil {
		return err
	}
	sealed, err := os.ReadFile("/greeting.seal")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%ssealed as %s", greeting, sealed)
	return nil
}

// compose writes the greeting, and how often the counter in the cache mount was raised so far.
func compose(out io.Writer, text, counter, result string) error {
	greeting, err := os.ReadFile(text)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(counter)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	runs, _ := strconv.Atoi(string(before)) // empty the first time
	runs++
	if err := os.WriteFile(counter, []byte(strconv.Itoa(runs)), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(result), 0o755); err != nil {
		return err
	}
	fmt.Fprintf(out, "composing a greeting, for the %d. time on this cache\n", runs)
	return os.WriteFile(result, fmt.Appendf(bytes.TrimSpace(greeting), "\ncomposed in run %d of this cache\n", runs), 0o644)
}

// seal writes an authenticator of a file beside it, under a secret that does not stay.
func seal(out io.Writer, secret, file string) error {
	key, err := os.ReadFile(secret)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	fmt.Fprintln(out, "sealing it with a secret that the image will not hold")
	return os.WriteFile(file+".seal", fmt.Appendf(nil, "%x\n", mac.Sum(nil)[:8]), 0o644)
}
