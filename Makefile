# The commands that people repeat. `make help` lists them. Continuous integration calls the same ones (.ci/run).

# The features that tests and lints switch on. TLS is switched on by the tests themselves (tests/Cargo.toml).
FEATURES := resilience-core/otel,resilience-core/compress,resilience-core/encrypt,resilience-core/messagepack,resilience-core/testing,resilience-core/sqlx-postgres,resilience-core/sqlx-sqlite,resilience-http/otel,resilience-http/axum,resilience-redis/cli
CARGO ?= cargo
# The peers bring features of their own, which must not leak into what is tested: built apart. One of them asks for a newer
# compiler than it needs.
PEERS := --ignore-rust-version -p resilience-peers
# One selection for what is only checked (lints, documentation, combinations of features), and one for what is run: so
# dependencies are compiled twice in all. The benches compare with peers, and are built where those are.
CHECKED := --workspace --exclude resilience-peers --exclude resilience-benches --features $(FEATURES)
TESTED := $(CHECKED) --exclude resilience-figures
PUBLIC := -p resilience-core -p resilience-http -p resilience-redis -p resilience-dependencies --features $(FEATURES)

.DEFAULT_GOAL := help
.PHONY: help setup test tests-storm tests-beside tests-redis tests-other peers lint words fmt docs features newcomers package loom deny fuzz figures instructions torture bench storm ci

help: ## List the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what the tests need beside Rust (PostgreSQL's server programs, PgBouncer, redis-server)
	tests/setup.sh

# Part of it: make test ONLY="--test redis" FILTER=regions::
test: setup ## Every test: units, properties, real servers, a real PostgreSQL, real Redis servers, documentation, allocations
ifneq ($(ONLY)$(FILTER),)
	$(CARGO) test --no-fail-fast $(TESTED) $(or $(ONLY),--tests) $(and $(FILTER),-- $(FILTER))
else
	$(CARGO) test --no-run $(TESTED) --tests
	@$(MAKE) --no-print-directory -k tests-storm tests-beside
endif

# The main job measures how long callers wait: alone.
tests-storm:
	$(CARGO) test --no-fail-fast $(TESTED) --test storm

tests-beside:
	@$(MAKE) --no-print-directory -k -j2 tests-redis tests-other

# The program `redis` waits for servers most of its time: in more threads than there are processors (it takes half as long in five
# as in two), and the others run beside it. Each program is in one of the three. Of those that are not tests only `storm` has
# some: to ask for all would compile the others once more, as tests.
tests-redis:
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-5} $(CARGO) test --no-fail-fast $(TESTED) --test redis

tests-other:
	$(CARGO) test --no-fail-fast $(TESTED) --lib --bin storm --test '[!rs]*' --test sql
	$(CARGO) test --no-fail-fast $(TESTED) --doc

peers: setup ## The benches, and what the peers do when it matters, beside ours (a job of its own: not part of `make ci`)
	$(CARGO) clippy $(PEERS) -p resilience-benches --all-targets -- -D warnings
	$(CARGO) test --no-fail-fast -p resilience-benches
	$(CARGO) test --no-fail-fast $(PEERS)

lint: ## Formatting and lints, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CHECKED) --all-targets -- -D warnings

words: ## Find words that were replaced (.ci/words.txt says by what); `.ci/words --count` counts them by folder
	@.ci/words

fmt: ## Format everything
	$(CARGO) fmt --all

docs: ## Build the documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps $(PUBLIC)

features: ## Check every combination of features that an application can choose
	CARGO="$(CARGO)" .ci/features

newcomers: ## Compile the recipes of the README, each in an empty crate with the dependencies that stand above it
	CARGO="$(CARGO)" .ci/newcomers

package: ## Package the libraries as for crates.io, without compiling them again
	$(CARGO) package -q --no-verify --allow-dirty -p resilience-core -p resilience-http -p resilience-redis

loom: ## Explore the interleavings of the circuit breaker's atomics
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test -p resilience-core --no-default-features --features cache --profile loom --lib loom

deny: ## Check licences, sources and bans of the dependencies (installs cargo-deny if it is missing)
	CARGO="$(CARGO)" .ci/deny

fuzz: ## Fuzz what parses untrusted bytes, guided by coverage, FUZZ_SECONDS (20) a target (installs cargo-fuzz if it is missing)
	CARGO="$(CARGO)" .ci/fuzz

figures: ## Run every bench and print each figure as one JSON line
	@$(CARGO) bench -q -p resilience-benches -- --figures
	@$(CARGO) run -q --release -p resilience-figures
	@$(CARGO) run -q --release $(PEERS)

instructions: ## Count the instructions of every hot path with callgrind and print each as one JSON line (needs valgrind)
	@$(CARGO) run -q --release -p resilience-figures --bin instructions

torture: ## A thousand instances with ten shared breakers each on one Redis; processes that are killed, cut off and upgraded; clocks that step; larger models
	@$(CARGO) run -q --release -p resilience-figures -- torture
	@$(CARGO) run -q --release -p resilience-tests --bin torture
	@FULL_COUNTS=1 $(CARGO) test -q --release -p resilience-models
	@FULL_COUNTS=1 $(CARGO) test -q --release -p resilience-core --lib
	@FULL_COUNTS=1 $(MAKE) --no-print-directory features

bench: ## Run every bench and print the tables, ours beside the peers'
	$(CARGO) bench -p resilience-benches

storm: ## The main job: a plain client and a guarded one against an upstream that misbehaves
	$(CARGO) run --release

ci: ## What continuous integration runs
	.ci/run
