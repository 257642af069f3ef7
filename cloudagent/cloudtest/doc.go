// Package cloudtest holds the conformance suite of cloudagent.Provider, and a provider in memory that passes it.
//
// A provider's own test is one line:
//
//	cloudtest.Run(t, func(t *testing.T) cloudagent.Provider { ... })
package cloudtest
