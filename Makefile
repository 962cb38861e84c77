# The two commands that need nothing but a Rust toolchain on Debian or Ubuntu: make demo, make test.

SHELL := /bin/bash
with_cache := . scripts/cache-dir.sh &&
build := $(with_cache) cargo build --workspace --profile ci
xtask := $(with_cache) "$$CARGO_TARGET_DIR/ci/xtask"

.PHONY: demo test lint

# KEEP=1 leaves everything running.
demo:
	scripts/setup.sh demo
	$(build)
	$(xtask) demo $(if $(KEEP),--keep)

test:
	scripts/setup.sh test
	$(build)
	$(with_cache) cargo nextest run --workspace --cargo-profile ci --profile ci

lint:
	scripts/setup.sh demo
	cargo fmt --all --check
	$(with_cache) cargo clippy --workspace --all-targets --profile ci -- -D warnings
	$(with_cache) "$$DOWNRIVER_CACHE/venv/bin/buf" lint proto
