// Command depotctl builds container images on depot's builders. See package depotctl.
package main

import (
	"os"

	"github.com/depotctl/depot/depotctl"
)

func main() { os.Exit(depotctl.Main(os.Args[1:])) }
