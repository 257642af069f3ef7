# make          what there is
# make demo     depotd, a build, a cached build: on this machine, in a temporary directory
# make test     everything

BIN     := $(CURDIR)/bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION) -X github.com/depotctl/depot/depotctl.version=$(VERSION)
# One set of flags for build and test, so that Go's cache serves both.
export GOFLAGS := -trimpath $(GOFLAGS)

COMMANDS := depotctl depotd apiserver cloudagent machineagent
source.depotctl     := ./depotctl/cmd/depotctl
source.depotd       := ./deploy/stack/cmd/depotd
source.apiserver    := ./apiserver/cmd/apiserver
source.cloudagent   := ./cloudagent/cmd/cloudagent
source.machineagent := ./machineagent/cmd/machineagent

# PACKAGES, RUN and TESTFLAGS narrow a test: make test PACKAGES=./bus/... RUN=TestTable
PACKAGES  ?= ./...
# One package at a time: the tests of most start processes and machines of their own, which share the processors.
TESTFLAGS ?= -race -p=1 -timeout=20m
ifdef RUN
TESTFLAGS += -run='$(RUN)'
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-offline bench check lint fmt docs build tools clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## depotd in a temporary directory, a build, the same build again from the cache; leaves nothing behind
	@scripts/setup run
	@scripts/tools --link $(BIN) run
	@$(MAKE) --no-print-directory build
	@go run ./deploy/demo

test: ## all tests; the last line is the sum
	@scripts/setup test
	@scripts/tools --link $(BIN) run test
	@$(MAKE) --no-print-directory build
	@echo "test: compiling" && go test -race -exec=true $(PACKAGES) >/dev/null
	@DEPOT_TOOLS=$(BIN) go run ./scripts/testreport $(TESTFLAGS) $(PACKAGES)

test-offline: ## all tests in a network namespace with only loopback, without the module proxy
	@scripts/setup test
	@scripts/tools --link $(BIN) run test
	@go mod download
	@GOPROXY=off unshare --net -- sh -c 'ip link set lo up && exec $(MAKE) --no-print-directory test'

bench: ## compare a cached build with docker-buildx and buildctl, and measure acquisition and transfer
	@scripts/setup run
	@scripts/tools --link $(BIN) run test
	@$(MAKE) --no-print-directory build
	@DEPOT_TOOLS=$(BIN) go run ./deploy/bench

check: lint test ## lint and test

lint: ## golangci-lint over everything
	@scripts/tools --link $(BIN) lint
	@$(BIN)/golangci-lint run

fmt: ## format as the linter wants it
	@scripts/tools --link $(BIN) lint
	@$(BIN)/golangci-lint fmt

docs: ## write again what is generated from code: the bus table, state diagrams
	@go generate ./...

build: ## the programs, in bin/, beside links to the tools that machines run
	@scripts/tools --link $(BIN) run
	@mkdir -p $(BIN)
	@$(foreach c,$(COMMANDS),echo "build: $(c)" && go build -ldflags '$(LDFLAGS)' -o $(BIN)/$(c) $(source.$(c)) &&) true

tools: ## buildkitd, CNI plugins, nats-server and docker-buildx, once per version, in the user's cache directory
	@scripts/tools run test

clean: ## remove bin/; the tools stay in the user's cache directory
	@rm -rf $(BIN)
