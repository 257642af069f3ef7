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
	c := &eagerConn{Conn: conn}
	c.change.L = &c.mu
	return c, nil
}

// eagerLimit bounds what waits to be read. Beyond it a write blocks as on any connection.
const eagerLimit = 64 << 10

// eagerConn has a goroutine only while something waits to be read: the client library forgets to close the connection
// of an attempt that was refused.
type eagerConn struct {
	net.Conn

	mu      sync.Mutex
	change  sync.Cond
	pending []byte
	pumping bool
	closed  bool
	err     error // of a write to the pipe
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
	if !c.pumping {
		c.pumping = true
		go c.pump()
	}
	return len(data), nil
}

// pump writes what is pending, until nothing is.
func (c *eagerConn) pump() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) > 0 && c.err == nil {
		data := c.pending
		c.pending = nil
		c.mu.Unlock()
		_, err := c.Conn.Write(data)
		c.mu.Lock()
		c.err = err
		c.change.Broadcast()
	}
	c.pumping = false
	c.change.Broadcast()
}

// Close gives the server a moment to read what was written, and ends the connection.
func (c *eagerConn) Close() error {
	err := c.SetWriteDeadline(time.Now().Add(time.Second))
	c.mu.Lock()
	c.closed = true
	c.change.Broadcast()
	for c.pumping {
		c.change.Wait()
	}
	c.mu.Unlock()
	return errors.Join(err, c.Conn.Close())
}
