# Plain go lines. `make help` explains each target.
GO    ?= go
TOOLS := $(GO) tool -modfile=.ci/tools/go.mod

.DEFAULT_GOAL := help
SOAK  ?= 10m
LOAD  ?= 10m
.PHONY: help build run test race e2e soak load bench fuzz generate check

help: ## say what each target does
	@grep -E '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

build: ## the binary, at bin/raftmine
	$(GO) build -trimpath -o bin/raftmine ./cmd/raftmine

run: build ## a web service, 3 servers and 2 miners mine 5 real blocks on this machine; then the audit
	@dir=raftmine-run-$$(date +%Y%m%d-%H%M%S); set -x; bin/raftmine run --blocks 5 --data-dir "$$dir" && bin/raftmine audit "$$dir"

test: ## all tests that every change must pass; under 5 minutes on 2 cores
	$(GO) test -timeout 10m ./...

race: ## the same with the race detector
	$(GO) test -race -timeout 20m ./...

e2e: ## the end-to-end tests with more rounds, and a drill of 100 faults; tells each test, and why one was skipped
	RAFTMINE_E2E=full $(GO) test -v -count=1 -timeout 40m ./cmd/raftmine

soak: ## random faults against simulated clusters, for SOAK=10m; says how many, and prints a schedule that breaks a promise
	$(GO) test -count=1 -timeout 0 -run '^TestSimulation$$' ./cmd/raftmine -sim.for $(SOAK)

load: ## no election for LOAD=10m while miners take all CPU and 16 writers fill the log; LOADFLAGS='-load.busy 8 -load.disk 2' adds to it
	$(GO) test -count=1 -timeout 0 -run '^TestNoElectionUnderLoad$$' ./cmd/raftmine -load.for $(LOAD) $(LOADFLAGS)

bench: ## speed: kernels, search loop, group commit, coordinator, a cluster with 1,000 and 5,000 miners, 30 leaders killed and stopped
	$(GO) test -run '^$$' -bench . -benchmem $$($(GO) list ./... | grep -v /cmd/)
	$(GO) test -run '^$$' -bench . -skip '^BenchmarkLeader' -benchtime 1x -timeout 30m ./cmd/raftmine
	$(GO) test -run '^$$' -bench '^BenchmarkLeader' -benchtime 30x -timeout 30m ./cmd/raftmine

fuzz: ## each fuzz target for 30 seconds
	.ci/fuzz 30s

generate: ## generated code: from the proto files, and the assembly of the kernels
	.ci/generate

check: ## format, vet on every platform, staticcheck, proto lint, generated code up to date
	.ci/check
