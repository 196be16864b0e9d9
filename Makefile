# Two commands do all their own set-up on a fresh Debian 12 with Rust: `make demo` and `make test`.

.PHONY: help demo test bench bench-overlay peers build sim swarm mutants fmt setup tools clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: setup ## build, then a throw-away fabric of three nodes: join, run, fail over
	cargo build --release --locked -p smartnode
	target/release/smartnode demo

test: setup tools ## formatting, lints, licences, all tests, the simulator's determinism check and a short swarm
	./scripts/test

bench: setup peers ## figures beside those of etcd, serf, LXD and podman; ROW=name for one row, RECORD=1 writes README's
	cargo build --release --locked -p smartnode
	cargo build --profile swarm --locked -p smartnode-sim
	cargo bench --locked -p smartnode-tests --bench fabric -- $(ROW) $(if $(RECORD),--record)

bench-overlay: ## figures of overlay networks alone, beside those of other tunnels; RECORD=1 writes README's
	$(MAKE) bench ROW=overlay

build: ## the binary, optimised
	cargo build --release --locked -p smartnode

sim: ## one simulated cluster under faults; SEED=n chooses which
	cargo run --profile swarm --locked -p smartnode-sim -- run --seed $(or $(SEED),1)

swarm: ## the simulator's long swarm: SEEDS=n, FROM=n, NODES=n, SECONDS=n
	cargo build --profile swarm --locked -p smartnode-sim
	target/swarm/smartnode-sim swarm --seeds $(or $(SEEDS),1000) --from $(or $(FROM),1) --nodes $(or $(NODES),5) --seconds $(or $(SECONDS),60)

mutants: ## plants each bug of sim/mutants in a copy of the sources, for a swarm to find; ONLY=name for one
	./scripts/mutants $(ONLY)

fmt: ## format the sources
	cargo fmt --all

setup:
	@./scripts/setup packages

peers:
	@./scripts/setup peers

tools:
	@./scripts/setup tools

clean: ## remove what was built
	cargo clean
