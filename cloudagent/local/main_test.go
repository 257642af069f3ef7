package local

import (
	"os"
	"testing"
)

// TestMain lets this executable be everything that the tests need as a process of its own.
func TestMain(m *testing.M) {
	MaybeInit()
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "--user-data":
			standIn(os.Args[2]) // the program of a machine
			os.Exit(1)
		case roleOutside:
			outside(os.Args[2]) // a host elsewhere on the network
			os.Exit(1)
		case roleLaunch:
			launchOnce(os.Args[2]) // a provider that the test kills
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
