package zz

import (
	_ "github.com/alecthomas/kong"
	_ "github.com/docker/buildx/commands"
	_ "github.com/docker/buildx/driver"
	_ "github.com/docker/cli/cli/command"
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
	_ "github.com/nats-io/jwt/v2"
	_ "github.com/nats-io/nats-server/v2/server"
	_ "github.com/nats-io/nats.go"
	_ "github.com/nats-io/nats.go/jetstream"
	_ "github.com/nats-io/nkeys"
	_ "github.com/stretchr/testify/require"
	_ "go.uber.org/goleak"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "pgregory.net/rapid"
	_ "github.com/rogpeppe/go-internal/testscript"
)
