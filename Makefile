# Sluice: `make run` starts everything on this machine, `make test` tests it. `make help` lists the rest.
SHELL := /bin/bash
export CGO_ENABLED := 0
DATA ?= .data/cluster
FAULTS ?= 200
GROUP ?= franz-go seeds kcat java-cli python
KIT ?= ../shared/kit
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := sluice sluice-edge firmware-sim loadtest
GO_FILES := $(shell find bridge cmd core edge firmware-sim loadtest -name '*.go' -o -name '*.html' -o -name '*.js' -o -name '*.css' 2>/dev/null)
FUZZTIME ?= 10s
.DEFAULT_GOAL := help
.PHONY: help run cluster build cross test race fuzz e2e chaos scale check fmt conformance clean

help: ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

run: bin/sluice ## one core, one gateway, a simulated city and its page, in one process (data in .data/dev)
	@exec bin/sluice dev --data .data/dev

cluster: bin/sluice ## three core nodes and a gateway as separate processes (data in DATA, default .data/cluster)
	@exec deploy/cluster.sh "$(DATA)"

build: $(addprefix bin/,$(BINARIES)) ## bin/sluice, bin/sluice-edge, bin/firmware-sim, bin/loadtest

bin/%: go.mod go.sum $(GO_FILES)
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

bin/sluice-chaos: go.mod go.sum $(GO_FILES) # sluice with a switchboard for faults (cmd/internal/chaos), for tests only
	@mkdir -p bin
	go build -trimpath -tags chaos -ldflags '$(LDFLAGS)' -o $@ ./cmd/sluice

cross: ## builds for every platform that is promised, into bin/<os>-<arch>
	@set -e; for p in linux/amd64/ linux/arm64/ linux/arm/7; do IFS=/ read -r os arch arm <<<"$$p"; \
	  echo "$$os-$$arch$$arm"; mkdir -p "bin/$$os-$$arch$$arm"; GOOS=$$os GOARCH=$$arch GOARM=$$arm go build -trimpath -ldflags '$(LDFLAGS)' -o "bin/$$os-$$arch$$arm/" $(addprefix ./cmd/,$(BINARIES)); done

test: ## the tests beside the code (AGAIN=N: where at most N fail, they are run once more)
	@deploy/test.sh -timeout 20m ./...

race: ## the same under the race detector (needs a C compiler)
	@CGO_ENABLED=1 deploy/test.sh -race -timeout 30m ./...

fuzz: ## every fuzz target for FUZZTIME (default 10s)
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | while read -r f; do \
	  sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$f" | while read -r t; do deploy/fuzz.sh "$$(dirname "$$f")" "$$t" $(FUZZTIME); done; done

e2e: build bin/sluice-chaos ## real processes, killed and restarted, and the page in a real browser (RECORDINGS=directory adds recordings)
	@deploy/test.sh -tags e2e -count=1 -timeout 20m ./cmd/internal/e2e/

chaos: bin/sluice-chaos bin/loadtest ## breaks a real cluster FAULTS times (default 200) by SEED, and checks that it loses nothing (as root; CHAOS=--short for every kind once)
	@exec bin/loadtest chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) --result .data/chaos/result.json $(CHAOS) >/dev/null

scale: bin/sluice bin/loadtest ## what partitions cost, from 10 to 10,000 on three nodes: memory, idle processor, times, rates (SCALE="--sizes 10,1000" for less)
	@exec bin/loadtest scale --sluice bin/sluice --data .data/scale -o text $(SCALE)

check: ## format, vet, import rules
	@out=$$(gofmt -l bridge cmd core edge firmware-sim loadtest); [ -z "$$out" ] || { echo "not formatted:"; echo "$$out"; exit 1; }
	go vet ./...
	go vet -tags e2e ./cmd/internal/e2e/
	go vet -tags chaos ./cmd/sluice/
	go test -count=1 ./cmd/internal/archtest/

conformance: bin/sluice ## starts the cluster and runs groups of the kit of real clients (GROUP="kcat seeds", KIT=../shared/kit)
	@exec deploy/conformance.sh "$(KIT)" $(GROUP)

clean: ## removes what was built and every local data directory
	rm -rf bin .data
