package depotctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// projectFile is the name of the file that says which project a directory tree belongs to.
const projectFile = "depot.json"

// projectReference is the content of depot.json.
type projectReference struct {
	ID string `json:"id"` // id or name
}

// findProject looks for depot.json in dir and upwards. "" means that there is none: the organization's default.
func findProject(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, projectFile)
		text, err := os.ReadFile(path)
		if err == nil {
			return parseProject(path, text)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", failf(ExitUsage, "read project: %v", err).because(err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", nil
		}
		dir = parent
	}
}

func parseProject(path string, text []byte) (string, error) {
	var ref projectReference
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&ref)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends too early")
	}
	if err == nil && ref.ID == "" {
		err = errors.New("it has no id")
	}
	if err != nil {
		return "", failf(ExitUsage, "%s does not name a project: %v", path, err).
			hint(`it should read {"id": "prj-…"}; write it anew with ` + "`depotctl init --force`").because(err)
	}
	return ref.ID, nil
}

// projectFor decides on the project of a build: flag, DEPOT_PROJECT_ID, depot.json from the context directory upwards
// (of a context that is not a directory: from the working directory), else the organization's default.
func projectFor(flag, contextPath string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if id := os.Getenv("DEPOT_PROJECT_ID"); id != "" {
		return id, nil
	}
	if !isDirectory(contextPath) {
		contextPath = "."
	}
	return findProject(contextPath)
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
