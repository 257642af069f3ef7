package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/depotctl/depot/bus"
)

const root = ".."

// pages returns the text of every Markdown file of the repository by its path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && slices.Contains([]string{".git", "bin", "testdata"}, e.Name()) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	}))
	require.Contains(t, all, filepath.Join(root, "README.md"))
	return all
}

func TestDocs_LinksResolve(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	found := 0
	for path, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			found++
			_, err := os.Stat(filepath.Join(filepath.Dir(path), m[1]))
			require.NoError(t, err, "a link in %s", path)
		}
	}
	require.Positive(t, found)
}

func TestDocs_NameOnlyTargetsOfTheMakefile(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	target := regexp.MustCompile("(?m)(?:^|`|sudo )make ([a-z-]+)")
	found := 0
	for path, text := range pages(t) {
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			found++
			require.Regexp(t, "(?m)^"+m[1]+":", string(makefile), "%s speaks of make %s", path, m[1])
		}
	}
	require.Positive(t, found)
}

// The six steps name subjects as the table has them.
func TestArchitecture_NamesOnlySubjectsOfTheTable(t *testing.T) {
	t.Parallel()
	var subjects []string
	for row := range bus.Table() {
		subjects = append(subjects, row.Subject)
	}
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	require.NoError(t, err)
	found := regexp.MustCompile("`((?:api|ev|act|ctl|queue)\\.[^`]+)`").FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, found)
	for _, m := range found {
		require.Contains(t, subjects, m[1])
	}
}

// Every package that the table of packages names says in its documentation what its safety comes from.
func TestArchitecture_PackagesAreDocumented(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"bus", "certs", "apiserver", "cloudagent", "cloudagent/local", "machineagent", "depotctl", "deploy/stack"} {
		text, err := os.ReadFile(filepath.Join(root, dir, "doc.go"))
		require.NoError(t, err)
		require.Contains(t, strings.ToLower(string(text)), "safety", "%s/doc.go", dir)
	}
}
