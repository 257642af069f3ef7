package daemon

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
)

const (
	maxLog  = 8 << 20 // bytes of the log, of which two files are kept
	maxLine = 300     // bytes of a line that is quoted
)

// logFile takes the daemon's output, keeps it small, and remembers its last words.
type logFile struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
	line []byte // not yet ended
	last string // that was an error, else any
	bad  bool   // last was an error
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &logFile{path: path, file: f, size: info.Size()}, nil
}

// Write appends. It never fails: a full disk must not end the daemon by a broken pipe.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remember(p)
	if l.size+int64(len(p)) > maxLog {
		l.rotate()
	}
	if l.file != nil {
		n, _ := l.file.Write(p)
		l.size += int64(n)
	}
	return len(p), nil
}

func (l *logFile) rotate() {
	_ = l.file.Close()
	_ = os.Rename(l.path, l.path+".1")
	l.file, _ = os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	l.size = 0
}

func (l *logFile) remember(p []byte) {
	for len(p) > 0 {
		text, rest, ended := bytes.Cut(p, []byte("\n"))
		if room := maxLine - len(l.line); room > 0 {
			l.line = append(l.line, text[:min(room, len(text))]...)
		}
		p = rest
		if !ended {
			return
		}
		line := strings.TrimSpace(string(l.line))
		l.line = l.line[:0]
		bad := isError(line)
		if line != "" && (bad || !l.bad) {
			l.last, l.bad = line, bad
		}
	}
}

// isError knows how buildkitd, and Go, say what is wrong. What follows, such as a stack, is not more important.
func isError(line string) bool {
	for _, level := range []string{"level=error", "level=fatal", "level=panic"} {
		if strings.Contains(line, level) {
			return true
		}
	}
	for _, begin := range []string{"buildkitd: ", "panic: ", "fatal error: "} {
		if strings.HasPrefix(line, begin) {
			return true
		}
	}
	return false
}

// lastWords returns the last error in the log, else its last line, to be put after a sentence.
func (l *logFile) lastWords() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == "" {
		return ""
	}
	return fmt.Sprintf(": %s", l.last)
}

// Close closes the file.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
