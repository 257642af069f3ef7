package depotctl

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pulse notes the signs of life of one builder: any byte that it sends. HTTP/2 answers an upload with window updates,
// and a solve with progress, so a builder that works is heard even when an RPC of ours waits behind other traffic.
type pulse struct {
	beats atomic.Uint64

	mu      sync.Mutex
	retired bool          // we closed the connection ourselves
	err     error         // the first end of a connection that we did not close
	ended   chan struct{} // closed with err
}

func newPulse() *pulse { return &pulse{ended: make(chan struct{})} }

func (p *pulse) beat() { p.beats.Add(1) }

func (p *pulse) count() uint64 { return p.beats.Load() }

// fail notes that the builder, or the network, has ended a connection.
func (p *pulse) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired || p.err != nil || errors.Is(err, net.ErrClosed) {
		return
	}
	p.err = err
	close(p.ended)
}

// retire says that from now on ends of connections are ours.
func (p *pulse) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired = true
}

// broken returns how the builder ended the connection, or nil.
func (p *pulse) broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// liveConn reports what it reads to a pulse.
type liveConn struct {
	net.Conn
	pulse *pulse
	head  []byte // read by hear, not yet by Read
}

// hear waits for the peer's first bytes and keeps them for Read.
func (c *liveConn) hear(timeout time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	buffer := make([]byte, 512)
	n, err := c.Conn.Read(buffer)
	c.head = buffer[:n]
	if n > 0 {
		return c.SetReadDeadline(time.Time{})
	}
	return err
}

// Read notes a sign of life, or the end of the connection.
func (c *liveConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.pulse.beat()
	}
	if err != nil {
		c.pulse.fail(err)
	}
	return n, err
}
