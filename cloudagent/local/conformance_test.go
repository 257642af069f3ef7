package local

import (
	"testing"

	"github.com/depotctl/depot/cloudagent"
	"github.com/depotctl/depot/cloudagent/cloudtest"
)

func TestProvider_Conforms(t *testing.T) {
	t.Parallel()
	cloudtest.Run(t, func(t *testing.T) cloudagent.Provider { return newProvider(t, testConfig(t)) })
}
