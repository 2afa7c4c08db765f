# Two commands are enough: `make demo` and `make test`. Both install what is missing (Debian 12, root or sudo).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
DEMO_FLAGS ?=
CAMPAIGN ?= --minutes 10
MUTANTS ?=
DEB_PROFILE ?= campaign

.PHONY: help demo lab lab-down screenshots lab-times chaos slow-clients test test-all check-format lint docs book unit doctest examples api-fuzz alerts campaign scale sabotage prove mutants deny linux-guest many-vms fuzz fuzz-keep bench units deb deb-test deb-boot-test clean

help:            ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo:            ## the whole story on this machine: a VM, its storage killed, healed; as root a host that fails, too. DEMO_FLAGS=--keep leaves it up
	scripts/setup.sh $$( ((EUID == 0)) && echo lab || echo demo )
	cargo run --release --locked --bin ringfence -- demo $(DEMO_FLAGS)

lab:             ## real Ceph, three hosts, agents, a controller and three VMs to play with; needs root
	scripts/setup.sh lab
	cargo build --release --locked --bin ringfence
	lab/up.sh

lab-down:        ## the lab away
	lab/all-down.sh

screenshots:     ## a host of a lab loses its power; what the page says of it, into docs/images; needs root
	scripts/setup.sh test
	cargo build --locked --bin ringfence
	scripts/screenshots.sh

lab-times:       ## how long from the loss of a host to its VM writing elsewhere, phase by phase; needs root
	scripts/setup.sh test
	cargo bench --locked --package ringfence-cli --bench times

slow-clients:    ## what a thousand slow clients of the API do to pings, side by side with nobody
	cargo bench --locked --package ringfence-cli --bench slow_clients

test:            ## everything that CI runs
	scripts/setup.sh test
	$(MAKE) --no-print-directory check-format lint docs deny doctest examples book
	cargo build --locked --bin ringfence
	target/debug/ringfence demo
	$(MAKE) --no-print-directory api-fuzz alerts prove deb-test
	# Labs mostly wait: simulated days take what they leave of the processors.
	$(MAKE) --no-print-directory -j 2 campaign unit

test-all: test deb-boot-test fuzz linux-guest many-vms chaos mutants ## and systemd, a fuzzer, thirty minutes of random faults on a lab, and what takes hours

check-format:    ## rustfmt
	cargo fmt --all --check

lint:            ## clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs:            ## rustdoc, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps --document-private-items

book:            ## docs/ as a book into target/book, every link in it checked
	scripts/setup.sh book
	scripts/book.sh

deny:            ## bans, licenses, sources
	cargo fetch --locked --quiet
	cargo deny --locked --offline check bans licenses sources

doctest:         ## the code in the docs
	cargo test --locked --workspace --doc

examples:        ## the programs that embed the bus, and the main stories told; the panic that one survives needs no backtrace
	export RUST_BACKTRACE=0; for example in request_reply events supervised_panic race partition self_heal; do cargo run --quiet --locked --example $$example; done

unit:            ## every test, closing with its counts
	MAKEFLAGS= cargo nextest run --locked --workspace

api-fuzz:        ## schemathesis against the API, by its own description
	PATH=$(CURDIR)/target/tools/bin:$$PATH scripts/api-fuzz.sh

alerts:          ## promtool on the alerts
	target/tools/promtool check rules deploy/prometheus/alerts.yml
	target/tools/promtool test rules deploy/prometheus/alerts_test.yml

units:           ## the systemd units: understood, hardened, and nothing in them that would end a VM
	scripts/units-test.sh

deb:             ## the Debian packages ringfence and ringfence-agent, into target/debian
	scripts/setup.sh deb
	scripts/deb.sh

deb-test:        ## both packages on a clean Debian 12: installed, run, upgraded, removed, purged; needs root. DEB_PROFILE=release for the real ones
	scripts/setup.sh deb
	scripts/units-test.sh
	PROFILE=$(DEB_PROFILE) scripts/deb-test.sh

deb-boot-test: deb-test ## and where systemd runs them, with a VM; needs root and cgroup2
	scripts/deb-boot-test.sh

campaign:        ## the model, then ten minutes of fresh seeds with all faults, which are printed; CAMPAIGN="--seeds 1..200" for given ones
	MAKEFLAGS= cargo build --locked --profile campaign --bin ringfence
	nice -n 19 target/campaign/ringfence model --depth 14
	nice -n 19 target/campaign/ringfence sim $(CAMPAIGN)

chaos:           ## thirty minutes of random faults on a lab, told as they happen; DURATION=SECONDS SEED=N plays one again; needs root
	scripts/setup.sh lab
	cargo build --locked --bin ringfence
	target/debug/ringfence scenario chaos --seconds $(or $(DURATION),1800) $(if $(SEED),--seed $(SEED))

scale:           ## 1,000 hosts, 10,000 VMs, 50 hosts die within a minute
	cargo build --locked --release --bin ringfence
	target/release/ringfence scenario run --stats examples/scale/thousand-hosts.toml

sabotage:        ## breaks the rules on purpose, one at a time, and says what notices each
	scripts/setup.sh test
	scripts/sabotage.sh

prove:           ## I1 proven for any number of controllers, hosts and VMs, and each of its rules taken away is noticed
	scripts/setup.sh prove
	target/tools/bin/python scripts/prove.py

mutants:         ## the decisions broken one expression at a time: which no test notices; takes hours. MUTANTS="--file actors/src/fence/guard.rs" for one file
	scripts/setup.sh mutants
	cargo mutants $(MUTANTS)

many-vms:        ## 20 VMs of one host come back elsewhere; needs root, and both cores for themselves
	scripts/setup.sh test
	VMS=20 cargo nextest run --locked --workspace --test campaigns all_vms_of_one_host

linux-guest:     ## a Linux guest with 24 requests in flight loses its vhost target 20 times
	scripts/setup.sh test
	KILLS=20 cargo nextest run --locked --workspace --test linux_guest

fuzz:            ## what reads bytes from elsewhere, given any: libFuzzer on each target for FUZZ_SECONDS (60); a finding is kept and told
	scripts/setup.sh fuzz
	scripts/fuzz.sh

fuzz-keep:       ## what `make fuzz` found to be new goes into the kept corpus, minimized
	scripts/fuzz.sh keep

bench:           ## the bus beside its peers in one run, and a recovery cycle of 100,000 hosts
	cargo bench --locked --package ringfence-benches
