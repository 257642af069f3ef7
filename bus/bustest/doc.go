// Package bustest runs the real bus for tests: the server, its trust, an API server's connection and the callout, all
// in this process, in some 50 ms. Nothing in it is a double.
package bustest
