package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module writes a module with the given test file, so that a real go test is what the report reads.
func module(t *testing.T, test string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module m\n\ngo 1.24\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "m_test.go"), []byte("package m\n\n"+test), 0o600))
	t.Chdir(dir)
}

func reportOf(t *testing.T, args ...string) (string, bool) {
	t.Helper()
	var out strings.Builder
	r := newTally(&out)
	for _, args := range split(args) {
		if err := run(t.Context(), r, args); err != nil {
			r.broken(err)
		}
	}
	ok := r.close()
	t.Log(out.String())
	return out.String(), ok
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestReport_CountsAndGivesTheReasonOfASkip(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) { t.Run("b", func(t *testing.T) { t.Log("noise") }) }
func TestC(t *testing.T) { t.Skip("no engine here: start one") }`)
	out, ok := reportOf(t, ".")
	require.True(t, ok)
	require.Contains(t, out, "m.TestC: no engine here: start one")
	require.NotContains(t, out, "noise")
	require.Regexp(t, `2 passed, 0 failed, 1 skipped$`, lastLine(out))
}

func TestReport_ShowsWhatFailed(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) { t.Error("the reason") }
func TestB(t *testing.T) { t.Log("noise") }`)
	out, ok := reportOf(t, ".")
	require.False(t, ok)
	require.Contains(t, out, "the reason")
	require.NotContains(t, out, "noise")
	require.Regexp(t, `1 passed, 1 failed, 0 skipped$`, lastLine(out))
}

func TestReport_APanicFails(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) { panic("the reason") }`)
	out, ok := reportOf(t, ".")
	require.False(t, ok)
	require.Contains(t, out, "the reason")
}

func TestReport_ATimeoutFailsAndNamesTheTest(t *testing.T) {
	module(t, `import "testing"
func TestHangs(t *testing.T) { <-make(chan int) }`)
	out, ok := reportOf(t, "-timeout=1s", ".")
	require.False(t, ok)
	require.Contains(t, out, "TestHangs")
	require.Contains(t, out, "timed out")
}

func TestReport_CodeThatDoesNotBuildFailsAndIsQuoted(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) { undefinedName() }`)
	out, ok := reportOf(t, ".")
	require.False(t, ok)
	require.Contains(t, out, "undefinedName")
}

func TestReport_NoTestIsAFailure(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) {}`)
	out, ok := reportOf(t, "-run=Nothing", ".")
	require.False(t, ok)
	require.Contains(t, out, "no test ran")
}

func TestReport_AnUnknownFlagIsAFailureEvenAfterASuccess(t *testing.T) {
	module(t, `import "testing"
func TestA(t *testing.T) {}`)
	out, ok := reportOf(t, ".", "--", "-no-such-flag", ".")
	require.False(t, ok, out)
}
