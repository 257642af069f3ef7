package local

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	MaybeInit()
	if len(os.Args) == 3 && os.Args[1] == "--user-data" {
		os.Exit(standIn(os.Args[2])) // this executable, as the program of a machine
	}
	os.Exit(m.Run())
}
