package front

import (
	"net"
	"sync"
)

// block is how much passes in one system call, in either direction. It holds several TLS records (16 KiB each), so
// that the cost of a call is shared; and it fits into a core's second cache together with its copies.
const block = 128 << 10

// overhead of TLS 1.3 for the records of one block: header, content type and tag of each, rounded up.
const overhead = (block/(16<<10) + 2) * 32

// blocks are the buffers of connections that are busy or may be.
var blocks = sync.Pool{New: func() any { b := make([]byte, block+overhead); return &b }}

// socket is the TCP connection under a tls.Conn, which itself makes one system call per record or more. It reads a
// block at a time, and between hold and flush it gathers what is written, so that one call moves many records.
type socket struct {
	net.Conn

	// Of the reading goroutine. in is lent from blocks while unread bytes are in it.
	in        *[]byte
	r, w      int  // unread: (*in)[r:w]
	available bool // Read returns errNothing rather than wait

	mu   sync.Mutex // tls.Conn writes alerts from its reading side
	out  []byte
	held bool
}

// errNothing is what Read returns when it would have to wait and must not. For tls.Conn, an error that is temporary
// leaves the connection as it was: the next Read goes on where this one stopped.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read yet" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// Read returns what a former call brought along, or waits for more.
func (s *socket) Read(p []byte) (int, error) {
	if s.r == s.w {
		if s.available {
			return 0, errNothing
		}
		n, err := s.Conn.Read(*s.in)
		s.r, s.w = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, (*s.in)[s.r:s.w])
	s.r += n
	return n, nil
}

// Write writes, or gathers while held.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held {
		return s.Conn.Write(p)
	}
	if len(s.out)+len(p) > cap(s.out) {
		if err := s.drain(); err != nil {
			return 0, err
		}
		if len(p) > cap(s.out) {
			return s.Conn.Write(p)
		}
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// hold makes Write gather into buf until flush.
func (s *socket) hold(buf []byte) {
	s.mu.Lock()
	s.held, s.out = true, buf[:0]
	s.mu.Unlock()
}

// flush writes what was gathered.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	return s.drain()
}

func (s *socket) drain() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.Conn.Write(s.out)
	s.out = s.out[:0]
	return err
}
