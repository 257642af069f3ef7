//go:build race

package bus_test

// raceDetector makes everything some ten times slower: hundreds of clients that share a processor with their server
// would then measure the detector.
const raceDetector = true
