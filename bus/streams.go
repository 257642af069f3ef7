package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// layoutVersion is that of the streams and buckets below. It is stored with each of them, so that an older API server
// leaves alone what a newer one has made.
const layoutVersion = 1

const layoutKey = "depot_layout"

// The streams that are not rows of the table.
const (
	// streamDeadLetters keeps what could not be carried out, until somebody has looked at it.
	streamDeadLetters = "DEADLETTERS"
	// streamExhausted keeps the server's notes about messages that it has given up delivering. The server publishes
	// such a note once, to whoever listens: here nobody has to listen at that moment.
	streamExhausted = "EXHAUSTED"

	subjectDeadLetters = "dead"
	subjectExhausted   = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
)

const (
	mebibyte = 1 << 20

	// dedupeWindow is how long a stream remembers message ids. It only saves work: whoever carries a message out is
	// idempotent, because a repeat after the window is stored again.
	dedupeWindow = 10 * time.Minute
	// maxConsumers is set because the server's own default is 1,000 a stream: here each connection has one.
	maxConsumers   = 20_000
	maxMessageSize = 512 << 10
	maxEvents      = 2_000 // of one build
	eventsMaxAge   = 24 * time.Hour
)

// streamConfigs are all streams, with those of the table derived from its rows.
func (c *Control) streamConfigs() []jetstream.StreamConfig {
	var names []string
	subjects := map[string][]string{}
	kinds := map[string]Kind{}
	for row := range Table() {
		if row.Stream == "" {
			continue
		}
		if !slices.Contains(names, row.Stream) {
			names = append(names, row.Stream)
		}
		subjects[row.Stream] = append(subjects[row.Stream], streamSubject(row, "*", nil))
		kinds[row.Stream] = row.Kind
	}
	var all []jetstream.StreamConfig
	for _, name := range names {
		cfg := queueConfig(name)
		if kinds[name] == KindEvents {
			cfg = eventsConfig(name)
		}
		cfg.Subjects = subjects[name]
		all = append(all, cfg)
	}
	dead := eventsConfig(streamDeadLetters)
	dead.Subjects, dead.MaxAge, dead.MaxMsgsPerSubject = []string{subjectDeadLetters + ".>"}, 0, -1
	exhausted := queueConfig(streamExhausted)
	for _, name := range names {
		if kinds[name] == KindQueue {
			exhausted.Subjects = append(exhausted.Subjects, subjectExhausted+"."+name+".*")
		}
	}
	return append(all, dead, exhausted)
}

// queueConfig is a work queue: a message stays until it is acknowledged, and a full queue refuses the next one, so that
// nothing that was accepted is ever pushed out.
func queueConfig(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:         name,
		Retention:    jetstream.WorkQueuePolicy,
		Discard:      jetstream.DiscardNew,
		MaxBytes:     128 * mebibyte,
		MaxMsgSize:   maxMessageSize,
		MaxConsumers: maxConsumers,
		Duplicates:   dedupeWindow,
	}
}

// eventsConfig is a log for people: the oldest lines make room for new ones.
func eventsConfig(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              name,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxAge:            eventsMaxAge,
		MaxBytes:          256 * mebibyte,
		MaxMsgsPerSubject: maxEvents,
		MaxMsgSize:        maxMessageSize,
		MaxConsumers:      maxConsumers,
		Duplicates:        dedupeWindow,
	}
}

// bucketConfig is that of a KV bucket in the client library's format, so that the nats command line can read it, but
// with every read answered by the leader (AllowDirect off): a follower may be behind.
func bucketConfig(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketStream(name),
		Subjects:          []string{bucketSubject(name, ">")},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		MaxBytes:          128 * mebibyte,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        maxMessageSize,
		MaxConsumers:      maxConsumers,
		Duplicates:        2 * time.Minute,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowMsgTTL:       true,
	}
}

// The wire format of a bucket, which is that of the client library's KV.
const (
	headerOperation = "KV-Operation"
	operationPurge  = "PURGE"

	// markerTTL is how long the marker of a deleted record stays, for watches that were interrupted.
	markerTTL = 24 * time.Hour
)

func bucketStream(name string) string       { return "KV_" + name }
func bucketSubject(name, key string) string { return "$KV." + name + "." + key }

// isMarker reports whether a message stands for a deleted record.
func isMarker(h nats.Header) bool {
	return h.Get(headerOperation) != "" || h.Get(jetstream.MarkerReasonHeader) != ""
}

// streamSubject is the subject of a queue or events row in CONTROL. Parameters without a value become wildcards.
func streamSubject(row Row, account string, params map[string]string) string {
	if row.Kind == KindEvents {
		return remoteSubject(row, row.Scope, account, params)
	}
	tokens := strings.Split(row.Subject, ".")
	for i, token := range tokens {
		switch {
		case token == accountParam:
			tokens[i] = account
		case strings.HasPrefix(token, "{"):
			tokens[i] = "*"
			if v := params[token]; v != "" {
				tokens[i] = v
			}
		}
	}
	return strings.Join(tokens, ".")
}

// ensureStreams makes every stream, the consumers that the API servers share, and starts to bury what the server has
// given up delivering.
func (c *Control) ensureStreams(ctx context.Context) error {
	for _, cfg := range c.streamConfigs() {
		if _, err := c.ensureStream(ctx, cfg); err != nil {
			return err
		}
	}
	for row := range Table() {
		if row.Kind == KindQueue && row.Scope == ScopeControl {
			if err := c.ensureShared(ctx, row.Stream, maxDeliver); err != nil {
				return err
			}
		}
	}
	return c.serveDeadLetters(ctx)
}

// ensureStream makes the stream or brings it to the wanted configuration, unless that would lose what it holds.
func (c *Control) ensureStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg.Storage = jetstream.FileStorage
	cfg.Replicas = c.replicas
	cfg.Metadata = map[string]string{layoutKey: strconv.Itoa(layoutVersion)}
	stream, err := c.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// Another API server may make it at the same time: the same configuration is accepted again.
		if stream, err = c.js.CreateStream(ctx, cfg); err == nil || !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return stream, wrapStream(cfg.Name, "create", err)
		}
		stream, err = c.js.Stream(ctx, cfg.Name)
	}
	if err != nil {
		return nil, wrapStream(cfg.Name, "read", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, wrapStream(cfg.Name, "read", err)
	}
	if err := checkLayout(info.Config, cfg, info.State.Bytes); err != nil {
		return nil, wrapStream(cfg.Name, "update", err)
	}
	stream, err = c.js.UpdateStream(ctx, cfg)
	return stream, wrapStream(cfg.Name, "update", err)
}

func wrapStream(name, verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s stream %s: %w", verb, name, err)
}

// checkLayout refuses a change that would lose messages, or that an older program would make to a newer one's stream.
func checkLayout(have, want jetstream.StreamConfig, bytes uint64) error {
	if v, err := strconv.Atoi(have.Metadata[layoutKey]); err == nil && v > layoutVersion {
		return fmt.Errorf("it has layout %d and this program knows %d: upgrade this API server", v, layoutVersion)
	}
	const how = "; back the stream up and change it by hand, or restore the old setting"
	switch {
	case have.Retention != want.Retention || have.Storage != want.Storage:
		return fmt.Errorf("it keeps messages by %v in %v and this program wants %v in %v"+how, have.Retention, have.Storage, want.Retention, want.Storage)
	case want.MaxBytes > 0 && bytes > uint64(want.MaxBytes):
		return fmt.Errorf("it holds %d bytes and would be cut to %d"+how, bytes, want.MaxBytes)
	case tighter(int64(have.MaxAge), int64(want.MaxAge)):
		return fmt.Errorf("messages would be kept for %v instead of %v"+how, want.MaxAge, have.MaxAge)
	case tighter(have.MaxMsgsPerSubject, want.MaxMsgsPerSubject):
		return fmt.Errorf("%d messages of each subject would be kept instead of %d"+how, want.MaxMsgsPerSubject, have.MaxMsgsPerSubject)
	case have.Replicas > want.Replicas:
		return fmt.Errorf("it has %d replicas and this program was told to want %d; start the API server with Replicas %d", have.Replicas, want.Replicas, have.Replicas)
	}
	for _, subject := range have.Subjects {
		if !slices.Contains(want.Subjects, subject) {
			return fmt.Errorf("subject %s would not be kept any more"+how, subject)
		}
	}
	return nil
}

// tighter reports whether a limit shrinks, where 0 and less mean no limit.
func tighter(have, want int64) bool {
	return want > 0 && (have <= 0 || want < have)
}

const (
	// sharedConsumer is the consumer that all API servers share, of each stream that is theirs.
	sharedConsumer = "apiservers"

	ackWait    = 30 * time.Second
	maxDeliver = 10
)

// consumerConfig has no BackOff: the server would take its first step for the time in which the first delivery must be
// acknowledged, so a handler of more than a second would be overtaken by a second one. The worker delays by itself.
func consumerConfig(name string, pending int) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       name,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    maxDeliver,
		MaxAckPending: pending,
		MaxWaiting:    128,
	}
}

func (c *Control) ensureShared(ctx context.Context, stream string, deliveries int) error {
	cfg := consumerConfig(sharedConsumer, 256)
	cfg.MaxDeliver = deliveries
	if _, err := c.js.CreateOrUpdateConsumer(ctx, stream, cfg); err != nil {
		return fmt.Errorf("create consumer %s of %s: %w", sharedConsumer, stream, err)
	}
	return nil
}

// agentQueues yields the queues that accounts of connections consume.
func agentQueues(yield func(Row) bool) {
	for row := range Table() {
		if row.Kind == KindQueue && row.Scope == ScopeConnection && !yield(row) {
			return
		}
	}
}

// ensureConsumer makes the durable consumers of a connection's account, named by it: the name is where the server puts
// the account's own key when the account pulls.
func (c *Control) ensureConsumer(ctx context.Context, account string) error {
	for row := range agentQueues {
		cfg := consumerConfig(account, 64)
		cfg.FilterSubject = streamSubject(row, account, nil)
		if _, err := c.js.CreateOrUpdateConsumer(ctx, row.Stream, cfg); err != nil {
			return fmt.Errorf("create consumer %s of %s: %w", account, row.Stream, err)
		}
	}
	return nil
}

// deleteConsumer removes an account's consumers and what waits for them; an account that has none is fine.
func (c *Control) deleteConsumer(ctx context.Context, account string) error {
	for row := range agentQueues {
		err := c.js.DeleteConsumer(ctx, row.Stream, account)
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("delete consumer %s of %s: %w", account, row.Stream, err)
		}
		stream, err := c.js.Stream(ctx, row.Stream)
		if err == nil {
			err = stream.Purge(ctx, jetstream.WithPurgeSubject(streamSubject(row, account, nil)))
		}
		if err != nil {
			return fmt.Errorf("purge the queue of %s: %w", account, err)
		}
	}
	return nil
}
