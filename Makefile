# The commands of this repository; each does its own set-up, on Debian 12 or later, as root.

export PATH := $(HOME)/.cargo/bin:$(PATH)
LAB := tests/lab/setup.sh
.DEFAULT_GOAL := help
.PHONY: help test rehearse slow bench lint lab packages images roots compiled

help:
	@echo 'make test       every test that a change must pass, with real firmware on virtual machines'
	@echo 'make rehearse   boots the site in tests/sites/rehearsal on virtual machines and shows the table of nodes'
	@echo 'make slow       the boot chains that take minutes: arm64 and others'
	@echo 'make bench      measures the daemon and its peers side by side and prints README'\''s table'
	@echo 'make lint       formatting and clippy, warnings are errors'

test: lab
	cargo test --workspace --no-fail-fast

rehearse: lab
	cargo run --quiet -p tests --example rehearse

slow: lab
	$(LAB) slow
	cargo test -p tests --test slow -- --ignored --test-threads 1

# Two cores, about half an hour; ARGS narrows it, for example ARGS="dhcp --rounds 1".
bench: packages
	$(LAB) bench
	cargo bench -p tests --bench peers -- $(ARGS)

lint: packages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Images and the root file system are made while the compiler works.
lab: packages
	@$(MAKE) --no-print-directory -j3 images roots compiled

packages images roots:
	@$(LAB) $@

compiled:
	cargo build --workspace --bins
	cargo test --workspace --no-run --quiet
