package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

const (
	// serveGroup is the queue group of the API servers: each request is answered by one of them.
	serveGroup = "api"
	// serveLimit is how many requests of one service run at a time in one API server. More wait in the subscription.
	serveLimit = 128
	// serveTimeout bounds one handler.
	serveTimeout = 30 * time.Second
	// requestInfo is written by the server; one that a client sends is overwritten.
	requestInfo = "Nats-Request-Info"
	// rewrittenReply starts every reply subject that crossed the wall between accounts.
	rewrittenReply = "_R_."
)

// Caller is who sent a message, as the server itself wrote it: nothing in it is the sender's claim.
type Caller struct {
	Role         Role
	Account      string
	Token        TokenID
	Organization OrganizationID
	Connection   ConnectionID
	Project      ProjectID // RoleCI
	Machine      MachineID
	Attempt      int // of the machine's launch

	refusal string // RoleRefused
}

// Serve answers the requests of all accounts until ctx ends. It returns as soon as the server has the subscription.
// Each request runs in a goroutine of its own, bounded in number and time; the context of a handler outlives ctx, so
// that a request which was accepted is finished. An error that is no *Fault is logged and answered with CodeInternal.
func (s Service[Req, Resp]) Serve(ctx context.Context, c *Control, h func(ctx context.Context, from Caller, req Req) (Resp, error)) error {
	row := *s.row
	return c.receive(ctx, row, func(ctx context.Context, from Caller, m *nats.Msg) (Message, error) {
		req, err := decode[Req](typeOf(row), m)
		if err != nil {
			return nil, Faultf(CodeInvalid, "%v", err)
		}
		return h(ctx, from, req)
	})
}

// Receive hears the signals of all accounts until ctx ends. Each is heard by every API server: whoever counts a silence
// must have heard all there was to hear. It returns as soon as the server has the subscription.
func (s Signal[M]) Receive(ctx context.Context, c *Control, h func(ctx context.Context, from Caller, msg M)) error {
	row := *s.row
	return c.receive(ctx, row, func(ctx context.Context, from Caller, m *nats.Msg) (Message, error) {
		msg, err := decode[M](typeOf(row), m)
		if err == nil {
			h(ctx, from, msg)
		}
		return nil, err
	})
}

// Send publishes a hint to an account; self is the receiver's id if the subject has one.
func (h Hint[M]) Send(ctx context.Context, c *Control, account string, self string, msg M) error {
	subject := remoteSubject(*h.row, h.row.Scope, account, map[string]string{"{self}": self})
	m, err := encode(typeOf(*h.row), subject, msg)
	if err == nil {
		err = errors.Join(ctx.Err(), c.nc.PublishMsg(m))
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", h.row.Name, err)
	}
	return nil
}

// remoteSubject is where CONTROL sees a row's subject of an account. Parameters without a value become wildcards.
func remoteSubject(row Row, scope Scope, account string, params map[string]string) string {
	tokens := strings.Split(row.Subject, ".")
	for i, token := range tokens {
		if strings.HasPrefix(token, "{") {
			tokens[i] = "*"
			if v := params[token]; v != "" {
				tokens[i] = v
			}
		}
	}
	return string(scope) + "." + account + "." + strings.Join(tokens, ".")
}

type receiver func(ctx context.Context, from Caller, m *nats.Msg) (Message, error)

// receive subscribes to a row in every scope that has it, until ctx or the connection ends.
func (c *Control) receive(ctx context.Context, row Row, handle receiver) error {
	slots := make(chan struct{}, serveLimit)
	for _, scope := range tenantScopes {
		for r := range rowsOf(scope) {
			if r.Name != row.Name {
				continue
			}
			if err := c.receiveScope(ctx, row, scope, slots, handle); err != nil {
				return fmt.Errorf("serve %s: %w", row.Name, err)
			}
		}
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("serve %s: %w", row.Name, err)
	}
	return nil
}

func (c *Control) receiveScope(ctx context.Context, row Row, scope Scope, slots chan struct{}, handle receiver) error {
	group := serveGroup
	if row.Kind == KindSignal {
		group = "" // no group
	}
	sub, err := c.nc.QueueSubscribe(remoteSubject(row, scope, "*", nil), group, func(m *nats.Msg) {
		slots <- struct{}{} // a handler is bounded in time, so this is too
		c.goWork(func() {
			defer func() { <-slots }()
			c.answer(row, scope, m, handle)
		})
	})
	if err != nil {
		return err
	}
	c.untilEnd(ctx, sub)
	return nil
}

// untilEnd ends a subscription with ctx, or with the connection.
func (c *Control) untilEnd(ctx context.Context, sub *nats.Subscription) {
	end := func() { _ = sub.Drain() } // what has come is still handled; fails only when the connection has ended
	context.AfterFunc(ctx, end)
	context.AfterFunc(c.life, end)
}

// answer is the one place that answers requests, and so the place of the guard: the reply subject of a request is
// chosen by its sender and not checked by any permission, but one that crossed the wall between accounts was rewritten
// by the server. Any other would make the API server write, with its own rights, wherever the sender likes.
func (c *Control) answer(row Row, scope Scope, m *nats.Msg, handle receiver) {
	log := c.log.With("subject", m.Subject)
	wantsReply := row.Kind == KindService
	if wantsReply != (m.Reply != "") || wantsReply && !strings.HasPrefix(m.Reply, rewrittenReply) {
		c.guarded.Add(1)
		log.Warn("request dropped: its reply subject was not written by the server", "reply", m.Reply)
		return
	}
	from, err := c.caller(row, scope, m)
	if err != nil {
		c.guarded.Add(1)
		log.Warn("request refused: its sender is not who may send it", "err", err)
		c.reply(m, row, nil, Faultf(CodeForbidden, "%v", ErrForbidden))
		return
	}
	ctx, cancel := context.WithTimeout(c.handling, serveTimeout)
	defer cancel()
	resp, err := protect(ctx, from, m, handle)
	if _, isFault := errors.AsType[*Fault](err); err != nil && (!isFault || !wantsReply) {
		log.Error("handler failed", "err", err)
		if errors.Is(err, context.DeadlineExceeded) {
			err = Faultf(CodeUnavailable, "the API server could not do it in time").WithHint("ask again")
		}
	}
	c.reply(m, row, resp, err)
}

// panicError is a handler's panic.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// protect turns a panic of one handler into its error, so that one bad request does not end all others.
func protect(ctx context.Context, from Caller, m *nats.Msg, handle receiver) (resp Message, err error) {
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, &panicError{v, debug.Stack()}
		}
	}()
	return handle(ctx, from, m)
}

func (c *Control) reply(m *nats.Msg, row Row, resp Message, failure error) {
	if m.Reply == "" {
		return
	}
	var out *nats.Msg
	if failure == nil {
		if out, failure = encode(replyTypeOf(row), m.Reply, resp); failure != nil {
			c.log.Error("answer refused", "subject", m.Subject, "err", failure)
		}
	}
	if failure != nil {
		var err error
		if out, err = encode(typeFault, m.Reply, AsFault(failure)); err != nil {
			c.log.Error("fault refused", "subject", m.Subject, "err", err)
			return
		}
		if name := refusalOf(failure); name != "" {
			out.Header.Set(headerRefused, name)
		}
	}
	if err := c.nc.PublishMsg(out); err != nil {
		c.log.Warn("answer lost", "subject", m.Subject, "err", err) // the caller asks again
	}
}

// serverWritten is the part of the server's request info that decides.
type serverWritten struct {
	Account   string `json:"acc"`
	User      string `json:"user"`
	IssuerKey string `json:"issuer_key"`
	NameTag   string `json:"name_tag"`
}

// caller reads who sent a message from what the server wrote, and requires that the row's role and the ids in the
// subject are the sender's own.
func (c *Control) caller(row Row, scope Scope, m *nats.Msg) (Caller, error) {
	values := m.Header.Values(requestInfo)
	if len(values) != 1 {
		return Caller{}, fmt.Errorf("%d request infos, want the server's one", len(values))
	}
	var info serverWritten
	if err := json.Unmarshal([]byte(values[0]), &info); err != nil {
		return Caller{}, fmt.Errorf("read request info: %w", err)
	}
	// The user name of a client with a user JWT is the client's own claim; there the name tag comes from the JWT.
	// Through the callout the name tag is the sentinel's, and the user name comes from the callout's JWT.
	name := info.NameTag
	if name == sentinelName {
		name = info.User
	}
	from, err := parseUserName(name)
	if err != nil {
		return Caller{}, err
	}
	from.Account = info.Account
	signer, err := c.trust.signerPublic(scope)
	if err != nil {
		return Caller{}, err
	}
	tokens := strings.Split(m.Subject, ".")
	home, err := scopeOf(from.Role)
	switch {
	case err != nil:
		return Caller{}, err
	case info.IssuerKey != signer || home != scope:
		return Caller{}, fmt.Errorf("user %q was not signed for scope %s", name, scope)
	case tokens[1] != info.Account:
		return Caller{}, fmt.Errorf("account %s sent to a subject of account %s", info.Account, tokens[1])
	case !slices.Contains(row.Roles, from.Role):
		return Caller{}, fmt.Errorf("role %s may not send %s", from.Role, row.Name)
	}
	self := slices.Index(strings.Split(row.Subject, "."), "{self}")
	if self >= 0 && tokens[self+2] != string(from.Machine) {
		return Caller{}, fmt.Errorf("machine %s sent as %s", from.Machine, tokens[self+2])
	}
	return from, nil
}

func (t *Trust) signerPublic(scope Scope) (string, error) {
	key, err := t.userSigner(scope)
	if err != nil {
		return "", err
	}
	return publicKey(key)
}

func publicKey(k nkeys.KeyPair) (string, error) {
	s, err := k.PublicKey()
	if err != nil {
		return "", fmt.Errorf("public key: %w", err)
	}
	return s, nil
}

// userName puts a grant into the name of its user: the one field that the server shows the API server for every kind
// of user. It is <role>.<ids…>.<attempt>; the prefix of each id tells what it identifies.
func userName(g Grant, refusal string) string {
	parts := []string{string(g.Role)}
	for _, id := range []string{string(g.Token), string(g.Organization), string(g.Connection), string(g.Project), string(g.Machine), refusal} {
		if id != "" {
			parts = append(parts, id)
		}
	}
	if g.Attempt > 0 {
		parts = append(parts, strconv.Itoa(g.Attempt))
	}
	return strings.Join(parts, ".")
}

func parseUserName(name string) (Caller, error) {
	parts := strings.Split(name, ".")
	c := Caller{Role: Role(parts[0])}
	if !slices.Contains(Roles, c.Role) {
		return Caller{}, fmt.Errorf("user %q has no role of the table", name)
	}
	for _, part := range parts[1:] {
		kind, _, _ := strings.Cut(part, "-")
		switch kind {
		case "tok":
			c.Token = TokenID(part)
		case "org":
			c.Organization = OrganizationID(part)
		case "con":
			c.Connection = ConnectionID(part)
		case "prj":
			c.Project = ProjectID(part)
		case "mch":
			c.Machine = MachineID(part)
		default:
			if n, err := strconv.Atoi(part); err == nil {
				c.Attempt = n
			} else if refusals[part] != nil {
				c.refusal = part
			} else {
				return Caller{}, fmt.Errorf("user %q: %q is no id", name, part)
			}
		}
	}
	return c, nil
}
