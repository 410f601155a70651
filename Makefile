# What CI runs, anyone can run: .ci/run calls these targets and nothing else.

BIN      := .cache/bin
LINT     := $(BIN)/golangci-lint
LINT_VER := v2.15.0
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
PKG      ?= ./...
RUN      ?= .
FUZZTIME ?= 20s
DURATION ?= 1h
N        ?= 1000
ATMOST   ?= 1h

# Each package's tests start clusters of their own, so more packages at a time than cores only makes
# all of them slow.
TEST := go test -timeout 20m -p $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n) -run '$(RUN)'

# The tests' clusters go into memory where 6 GiB of it are free.
SHM := $(shell [ "$$(df -Pk /dev/shm 2>/dev/null | awk 'END {print $$4}')" -ge 6291456 ] 2>/dev/null && echo /dev/shm)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-race test-long test-docker fuzz metamorphic model kills soak gateway-soak lint fmt generate bench benchstat pg postgres clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/ficus
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ficus ./cmd/ficus

demo: postgres build ## migrate a live database between two clusters on this machine, and prove it (ARGS=--keep to look around)
	bin/ficus demo $(ARGS)

test test-race: export FICUS_TEST_TEMP ?= $(SHM)
test: postgres ## run the tests (PKG=./sync/... RUN=TestName to run some)
	$(TEST) $(PKG)

test-race: postgres ## run the tests with the race detector
	$(TEST) -race $(PKG)

test-long: postgres ## run the long tests as well: random histories, faults, large tables
	FICUS_TEST_LONG=1 $(TEST) -timeout 60m $(PKG)

test-docker: ## run the tests against PostgreSQL in Docker containers
	.ci/docker-image
	FICUS_TEST_PG=docker $(TEST) $(PKG)

fuzz: ## run every fuzz target for FUZZTIME (default 20s); what one finds is kept in its testdata
	@grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' . | sed 's|/[^/]*:func | |' | sort | while read -r dir target; do \
		echo "$$dir $$target"; go test "$$dir" -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; done

metamorphic: postgres ## run N random histories (default 1000), for at most ATMOST (1h); SEED=n begins with that one
	@go test ./sync/link -run 'TestMetamorphic$$' -count 1 -v -timeout 0 -histories $(N) -atmost $(ATMOST) $(if $(SEED),-seed $(SEED)) > metamorphic.log 2>&1; \
		s=$$?; grep -E '^metamorphic:|again:|^(ok|FAIL|panic)' metamorphic.log; [ $$s = 0 ] && rm metamorphic.log; exit $$s

model: ## run N random histories of the workflow engine against fakes (default 1000); about 100 a second and core
	go test ./migrate -run 'TestModel$$' -count 1 -v -timeout 0 -histories $(N)

kills: postgres build ## kill ficus and the servers N times (default 1000) at the steps of migrations under load; SEED=n begins with that one
	go test ./internal/killtest -run 'TestKills$$' -count 1 -v -timeout 0 -kills $(N) -atmost $(ATMOST) -ficus $(CURDIR)/bin/ficus $(if $(SEED),-seed $(SEED))

soak: postgres ## follow under load for DURATION (default 1h) while everything breaks; needs the machine for itself
	FICUS_SOAK=$(DURATION) go test ./internal/soaktest -run TestSoak -count 1 -v -timeout 0

gateway-soak: postgres ## 200 clients through the gateway for DURATION (default 30m), a switch to and fro every 20 s
	FICUS_GATEWAY_SOAK=$(if $(filter command line environment,$(origin DURATION)),$(DURATION),30m) go test ./gateway -run 'TestSoak$$' -count 1 -v -timeout 0

lint: $(LINT) ## run the linters
	$(LINT) run ./...

fmt: $(LINT) ## format the code
	$(LINT) fmt ./...

generate: ## remake generated files
	go generate ./...

bench: postgres build ## run the Go benchmarks, then Ficus and its peers side by side (ARGS='--quick --only copy')
	go test -run '^$$' -bench . -benchmem $(PKG)
	go run ./bench $(ARGS)

benchstat: ## compare the Go benchmarks with those of BASE (default: the last tag, or the parent)
	@.ci/benchstat $(BASE)

pg: ## fetch PostgreSQL 13 to 18 into .cache/pg for tests and the demo
	.ci/fetch-pg

postgres: # make sure that a PostgreSQL server is on this machine
	@.ci/need-postgres

clean: ## remove what the build made; .cache stays
	rm -rf bin bench/out
	go clean -testcache

$(LINT):
	GOBIN=$(CURDIR)/$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VER)
