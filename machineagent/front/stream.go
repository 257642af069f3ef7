package front

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// lingering is how long a client may keep its side open after the daemon has closed.
const lingering = 5 * time.Second

// stream is one connection: the client's socket, TLS above it, and the daemon's socket.
type stream struct {
	socket *socket
	tls    *tls.Conn

	mu     sync.Mutex
	daemon net.Conn
	gone   bool
}

func newStream(conn net.Conn) *stream {
	in, _ := blocks.Get().(*[]byte)
	return &stream{socket: &socket{Conn: conn, in: in}}
}

// close releases everything. It is called once, by the goroutine that runs the stream.
func (s *stream) close() {
	s.shut()
	blocks.Put(s.socket.in)
	s.socket.in = nil
}

// reset cuts the connection now: what the client has not received is dropped, and it sees a reset. It may be called
// from any goroutine, and does not wait for a reader or a writer.
func (s *stream) reset() {
	if tcp, ok := s.socket.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	s.shut()
}

func (s *stream) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	_ = s.socket.Close()
	if s.daemon != nil {
		_ = s.daemon.Close()
	}
}

// splice carries bytes both ways until both sides have ended or one has failed. Each end of one side is passed on to
// the other, so that all bytes arrive even when one side ends early.
func (s *stream) splice(daemon net.Conn) error {
	s.mu.Lock()
	s.daemon = daemon
	if s.gone {
		_ = daemon.Close()
	}
	s.mu.Unlock()
	up := make(chan error, 1)
	go func() {
		err := s.up(daemon)
		if err != nil {
			s.shut()
		}
		up <- err
	}()
	err := s.down(daemon)
	if err != nil {
		s.shut()
	} else {
		_ = s.socket.SetReadDeadline(time.Now().Add(lingering))
	}
	return errors.Join(err, <-up)
}

// up carries what the client sends. It waits for one record, takes what else has arrived, and passes all on at once.
func (s *stream) up(daemon net.Conn) error {
	buf, _ := blocks.Get().(*[]byte)
	defer blocks.Put(buf)
	for {
		n, err := s.gather((*buf)[:block])
		if n > 0 {
			if _, err := daemon.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return closeWrite(daemon)
		}
		if err != nil {
			return err
		}
	}
}

func (s *stream) gather(buf []byte) (int, error) {
	n, err := s.tls.Read(buf)
	s.socket.available = true
	for err == nil && n < len(buf) {
		var more int
		more, err = s.tls.Read(buf[n:])
		n += more
	}
	s.socket.available = false
	if err == errNothing { //nolint:errorlint // the value itself, by identity: a wrapped one would be another's
		err = nil
	}
	return n, err
}

// down carries what the daemon sends: as much as is there, encrypted into one write.
func (s *stream) down(daemon net.Conn) error {
	plain, _ := blocks.Get().(*[]byte)
	defer blocks.Put(plain)
	sealed, _ := blocks.Get().(*[]byte)
	defer blocks.Put(sealed)
	for {
		n, err := daemon.Read((*plain)[:block])
		if n > 0 {
			s.socket.hold(*sealed)
			_, err := s.tls.Write((*plain)[:n])
			if err := errors.Join(err, s.socket.flush()); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return s.tls.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// closeWrite tells the daemon that no more will come.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
