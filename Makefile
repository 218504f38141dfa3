# The commands of this repository. `make` alone lists them. Works without a terminal and without input.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-db test check guest guest-db guest-lab lab-check dataset setup qemu10 bench build clean-runtime faults fuzz model simulate soak

TARGET := $(or $(CARGO_TARGET_DIR),target)
EPOCHGATE := $(TARGET)/release/epochgate
# Taps and network namespaces need root.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)
# Options for the command that a target runs, as in `make demo ARGS=--json`.
ARGS ?=

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build guest ## protect a VM on this machine, kill its host, see it go on
	@$(EPOCHGATE) demo $(ARGS)

demo-db: build guest-db ## a database in a VM that loses its host, and clients that keep their connections (as root or with sudo)
	@$(AS_ROOT) $(EPOCHGATE) demo-db $(ARGS)

test: setup check guest qemu10 ## all checks and all tests
	@tests/scripts/run-tests.sh $(ARGS)

check: setup ## formatting, lints, documentation
	@cargo fmt --all --check
	@cargo clippy --quiet --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps

bench: build guest guest-db ## all benchmarks, figures into docs/results.md (PARTS=nbd RUNS=100 REPEATS=3)
	@PARTS="$(PARTS)" tests/scripts/bench.sh

faults: build guest ## the fault matrix, so many runs (RUNS=2000 or PER_CELL=5, PARALLEL=3); adds to docs/faults.tsv
	@$(EPOCHGATE) bench faults --keep --parallel $(or $(PARALLEL),3) \
	  $(if $(PER_CELL),--per-cell $(PER_CELL),--runs $(or $(RUNS),2000)) \
	  --results $(TARGET)/faults.jsonl --ledger docs/faults.tsv --build "$$(tests/scripts/build-name.sh)" $(ARGS)

fuzz: ## every fuzz target for so long (SECONDS=60) or so often each (RUNS=20000000)
	@tests/scripts/fuzz.sh $(if $(RUNS),--runs $(RUNS)) $(SECONDS)

model: setup ## explore the commit protocol, the table of docs/testing.md (ARGS="--faults 3 --seconds 3600")
	@cargo run --quiet --package model -- $(ARGS)

simulate: setup ## run the deterministic simulator (SEEDS=1000, ARGS="--start 5000")
	@cargo run --quiet --release --package simulator -- --seeds $(or $(SEEDS),1000) $(ARGS)

soak: setup ## random histories, so many epochs (EPOCHS=1000000): every one that is kept reads as it was
	@HISTORY_EPOCHS=$(or $(EPOCHS),1000000) cargo test --quiet --release --package epoch-log --test history_soak -- --nocapture

build: setup ## the command epochgate, as it is meant to be run
	@cargo build --release --package epochgate

guest: setup ## the small guest of tests and demo, in target/guest
	@tests/guest/build.sh

guest-db: setup ## a Debian guest with Redis on ext4, in target/guest-db
	@tests/guest/build-db.sh

guest-lab: setup ## a Debian guest with compiler, SQLite, nginx, fio and stress-ng, in target/guest-lab
	@tests/guest/build-lab.sh

lab-check: build guest-lab ## does each load and each fault of the laboratory do what it says? (as root or with sudo; ARGS="leak deadlock")
	@cargo build --quiet --release --package monitor --example lab
	@$(AS_ROOT) $(TARGET)/release/examples/lab --check --guest target/guest-lab --parallel $(or $(PARALLEL),2) $(ARGS)

dataset: build guest-lab ## record the monitor's data set anew, or go on with it (DATASET=target/dataset HOURS=8.5 SEED=1 PARALLEL=4)
	@cargo build --quiet --release --package monitor --example lab
	@$(AS_ROOT) $(TARGET)/release/examples/lab --run --guest target/guest-lab --out $(or $(DATASET),target/dataset) \
	  --hours $(or $(HOURS),8.5) --seed $(or $(SEED),1) --parallel $(or $(PARALLEL),4) $(ARGS)

setup: ## install the Debian packages that are missing
	@tests/scripts/setup.sh

qemu10: setup ## QEMU 10 beside the installed one, in target/qemu10
	@tests/scripts/fetch-qemu10.sh

clean-runtime: ## remove what runs that were killed have left in /tmp and /dev/shm
	@tests/scripts/clean-runtime.sh
