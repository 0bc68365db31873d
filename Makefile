# The commands of this repository; each does its own set-up, on Debian 12 or later, as root.

export PATH := $(HOME)/.cargo/bin:$(PATH)
LAB := tests/lab/setup.sh
# Where `make kube` leaves what it built.
CACHE := $(or $(REVEILLE_LAB),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/reveille-lab)
export KUBE_APISERVER ?= $(wildcard $(CACHE)/kube/bin/kube-apiserver)
.DEFAULT_GOAL := help
.PHONY: help test quick rehearse slow kube bench lint lab packages images roots compiled

help:
	@echo 'make quick      the tests for every day: no virtual machine, no cluster'"'"'s whole life; four minutes once it is compiled'
	@echo 'make test       every test that a change must pass, with real firmware on virtual machines'
	@echo 'make rehearse   boots machines and an OKD cluster on virtual machines, told step by step'
	@echo 'make slow       three more boot chains: shim and GRUB, EDK2 on arm64 with GRUB, and a live root'
	@echo 'make kube       builds a real kube-apiserver (ten minutes, once) and tests against it what we ask of clusters'
	@echo 'make bench      measures the daemon and its peers side by side and prints README'\''s table'
	@echo 'make install    binary, unit, manual and completions; DESTDIR and prefix as usual'
	@echo 'make lint       formatting and clippy, warnings are errors'

test: lab
	cargo test --workspace --no-fail-fast

# Suites that boot machines or follow what takes its time.
LONG := crash elsewhere host_apply host_balancer host_kernel host_vlan okd_life qemu qemu_cluster slow storm talos_life vlan
SUITES := $(patsubst %/main.rs,%.rs,$(wildcard */tests/*.rs */tests/*/main.rs))
QUICK := $(filter-out $(LONG),$(sort $(basename $(notdir $(SUITES)))))

quick: lab
	cargo test --workspace --no-fail-fast --lib --bins $(QUICK:%=--test %)

rehearse: lab
	cargo run --quiet --example rehearse

slow: lab
	$(LAB) slow
	cargo test --workspace --test slow -- --ignored --test-threads 1

# The suites that ask clusters, against the real thing; `make test` runs them too, and uses what was built here.
kube: packages
	KUBE_APISERVER=$$(tests/lab/kube-apiserver.sh) && export KUBE_APISERVER && \
	  cargo test --workspace --test csr --test kube --test kube_recorded

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
	cargo build --package daemon --package agents --bins
	cargo test --workspace --no-run --quiet

# Where things go; packagers set DESTDIR, and prefix where it isn't /usr/local.
prefix ?= /usr/local
bindir ?= $(prefix)/bin
unitdir ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
mandir ?= $(prefix)/share/man
docdir ?= $(prefix)/share/doc/reveille
bashdir ?= $(prefix)/share/bash-completion/completions
fishdir ?= $(prefix)/share/fish/vendor_completions.d
# Debian's zsh looks elsewhere than everybody else's.
zshdir ?= $(prefix)/share/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
# What the nodes get, for whoever builds their images.
nodedir ?= $(prefix)/lib/reveille
# Where the binaries were built; empty builds them first.
built ?=
binaries := $(or $(built),target/release)

.PHONY: install
install:
	$(if $(built),,cargo build --release -p daemon -p agents)
	install -d '$(DESTDIR)$(bindir)' '$(DESTDIR)$(unitdir)' '$(DESTDIR)$(sysusersdir)' '$(DESTDIR)$(tmpfilesdir)' \
	  '$(DESTDIR)$(mandir)/man1' '$(DESTDIR)$(docdir)' '$(DESTDIR)$(bashdir)' '$(DESTDIR)$(fishdir)' '$(DESTDIR)$(zshdir)' \
	  '$(DESTDIR)$(nodedir)'
	install -m 0755 $(binaries)/reveille '$(DESTDIR)$(bindir)/reveille'
	install -m 0755 $(binaries)/reveille-agent '$(DESTDIR)$(nodedir)/reveille-agent'
	sed 's|/usr/bin/|$(bindir)/|' systemd/reveille.service > '$(DESTDIR)$(unitdir)/reveille.service'
	sed 's|/usr/bin/|$(bindir)/|' systemd/reveille-haproxy.service > '$(DESTDIR)$(unitdir)/reveille-haproxy.service'
	install -m 0644 systemd/reveille-agent.service '$(DESTDIR)$(nodedir)/reveille-agent.service'
	install -m 0644 systemd/reveille.sysusers '$(DESTDIR)$(sysusersdir)/reveille.conf'
	install -m 0644 systemd/reveille.tmpfiles '$(DESTDIR)$(tmpfilesdir)/reveille.conf'
	$(binaries)/reveille man '$(DESTDIR)$(mandir)/man1'
	$(binaries)/reveille completions bash > '$(DESTDIR)$(bashdir)/reveille'
	$(binaries)/reveille completions fish > '$(DESTDIR)$(fishdir)/reveille.fish'
	$(binaries)/reveille completions zsh > '$(DESTDIR)$(zshdir)/_reveille'
	install -m 0644 README.md LICENSE '$(DESTDIR)$(docdir)'
	cp -r daemon/docs/example-site daemon/docs/schema '$(DESTDIR)$(docdir)'
	chmod 0644 '$(DESTDIR)$(unitdir)/reveille.service'
