package bus

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// inProcess connects to a server in this process through a pipe whose client side writes without waiting for the
// server to read. On a bare pipe a server that refuses a client in the middle of its first words blocks on the client,
// which blocks on the server, and the refusal is never read.
type inProcess struct{ server *server.Server }

// InProcessConn implements the client library's interface.
func (p inProcess) InProcessConn() (net.Conn, error) {
	conn, err := p.server.InProcessConn()
	if err != nil {
		return nil, err
	}
	c := &eagerConn{Conn: conn, written: make(chan struct{})}
	c.change.L = &c.mu
	go c.pump()
	return c, nil
}

// eagerLimit bounds what waits to be read. Beyond it a write blocks as on any connection.
const eagerLimit = 64 << 10

type eagerConn struct {
	net.Conn

	mu      sync.Mutex
	change  sync.Cond
	pending []byte
	closed  bool
	err     error         // of the pump
	written chan struct{} // the pump has stopped
}

// Write takes the data and returns.
func (c *eagerConn) Write(data []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) > eagerLimit && c.err == nil && !c.closed {
		c.change.Wait()
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	if c.err != nil {
		return 0, c.err
	}
	c.pending = append(c.pending, data...)
	c.change.Broadcast()
	return len(data), nil
}

func (c *eagerConn) pump() {
	defer close(c.written)
	for {
		c.mu.Lock()
		for len(c.pending) == 0 && !c.closed {
			c.change.Wait()
		}
		data := c.pending
		c.pending = nil
		c.change.Broadcast()
		c.mu.Unlock()
		if len(data) == 0 {
			return // closed, and everything is written
		}
		if _, err := c.Conn.Write(data); err != nil {
			c.mu.Lock()
			c.err = err
			c.change.Broadcast()
			c.mu.Unlock()
			return
		}
	}
}

// Close gives the server a moment to read what was written, and ends the connection.
func (c *eagerConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.change.Broadcast()
	c.mu.Unlock()
	err := c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	<-c.written
	return errors.Join(err, c.Conn.Close())
}
