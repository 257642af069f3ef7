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
			os.Exit(standIn(os.Args[2])) // the program of a machine
		case roleOutside:
			os.Exit(outside(os.Args[2])) // a host elsewhere on the network
		case roleLaunch:
			os.Exit(launchOnce(os.Args[2])) // a provider that the test kills
		}
	}
	os.Exit(m.Run())
}
