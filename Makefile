# `make demo` shows the product, `make test` runs all checks. Both install missing packages (Debian 12, root or sudo).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
DEMO_FLAGS ?=
CAMPAIGN ?= --minutes 10
SEARCH ?= --minutes 4
MUTANTS ?=
DEB_PROFILE ?= campaign

.PHONY: help check search demo lab lab-down screenshots lab-times chaos slow-clients test test-all check-format lint docs book unit doctest examples api-fuzz alerts campaign scale sabotage prove mutants deny linux-guest many-vms fuzz fuzz-keep bench units deb deb-test deb-boot-test clean

help:            ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo:            ## Run the demo: a VM whose storage target dies and is redeployed; as root also a host failure. DEMO_FLAGS=--keep keeps it running
	scripts/setup.sh $$( ((EUID == 0)) && echo lab || echo demo )
	cargo run --locked --bin ringfence -- demo $(DEMO_FLAGS)

lab:             ## Start the lab: real Ceph, three hosts, agents, a controller and three VMs; root
	scripts/setup.sh lab
	cargo build --release --locked --bin ringfence
	lab/up.sh

lab-down:        ## Stop the lab and delete its state; root
	lab/all-down.sh

screenshots:     ## Take the screenshots in docs/images of a host failure on a lab; root
	scripts/setup.sh test
	cargo build --locked --bin ringfence
	scripts/screenshots.sh

lab-times:       ## Measure the phases of a failover on a lab; root
	scripts/setup.sh test
	cargo bench --locked --package ringfence-cli --bench times

slow-clients:    ## Measure pings while a thousand slow clients use the API, beside pings without clients
	cargo bench --locked --package ringfence-cli --bench slow_clients

check:           ## Run the formatter, clippy and every test that needs neither root nor a lab; installs QEMU if it is missing
	scripts/setup.sh demo
	$(MAKE) --no-print-directory check-format lint
	MAKEFLAGS= cargo nextest run --locked --workspace --profile check

test:            ## Run everything that CI runs; root
	scripts/setup.sh test
	$(MAKE) --no-print-directory check-format lint docs deny doctest examples book
	cargo build --locked --bin ringfence
	target/debug/ringfence demo
	$(MAKE) --no-print-directory api-fuzz alerts prove
	$(MAKE) --no-print-directory deb-test DEB_PROFILE=dev
	$(MAKE) --no-print-directory search unit

test-all: test campaign deb-boot-test fuzz linux-guest many-vms chaos mutants ## Run test, then a long campaign, systemd, fuzzing, random faults on a lab and mutants; hours; root

check-format:    ## Check the formatting (rustfmt)
	cargo fmt --all --check

lint:            ## Run clippy; warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

docs:            ## Build the rustdoc; warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps --document-private-items

book:            ## Build docs/ as a book in target/book and check every link
	scripts/setup.sh book
	scripts/book.sh

deny:            ## Check bans, licenses and sources of dependencies
	cargo fetch --locked --quiet
	cargo deny --locked --offline check bans licenses sources

doctest:         ## Run the code in the documentation
	cargo test --locked --workspace --doc

examples:        ## Run the programs that embed the bus, and the main stories
	export RUST_BACKTRACE=0; for example in request_reply events supervised_panic race partition self_heal; do cargo run --quiet --locked --example $$example; done

# Labs mostly wait: one more of them runs than there are cores. Without root, the tests that need it are counted as ignored.
unit:            ## Run every test and print the counts; as root also the tests that need root
	[[ -z $${CI:-} || $$EUID == 0 ]] || { echo "unit: run as root: on CI no test may be ignored" >&2; exit 1; }
	MAKEFLAGS= cargo nextest run --locked --workspace --test-threads $$(($$(nproc) + 1)) $$( ((EUID == 0)) && echo --run-ignored all) -E 'not test(=writes_a_journal_to_keep)'

api-fuzz:        ## Run schemathesis against the API
	PATH=$(CURDIR)/target/tools/bin:$$PATH scripts/api-fuzz.sh

alerts:          ## Test the alerts with promtool
	target/tools/promtool check rules deploy/prometheus/alerts.yml
	target/tools/promtool test rules deploy/prometheus/alerts_test.yml

units:           ## Check the systemd units: valid, hardened, and safe for running VMs
	scripts/units-test.sh

deb:             ## Build the Debian packages ringfence and ringfence-agent in target/debian
	scripts/setup.sh deb
	scripts/deb.sh

deb-test:        ## Install, run, upgrade, remove and purge both packages on a clean Debian 12; root. DEB_PROFILE=release tests release builds
	scripts/setup.sh deb
	scripts/units-test.sh
	PROFILE=$(DEB_PROFILE) scripts/deb-test.sh

deb-boot-test: deb-test ## Test both packages under systemd, with a VM; root and cgroup2
	scripts/deb-boot-test.sh

search:          ## Run the model, then fresh seeds for four minutes, in the program of the tests. SEARCH="--seeds 1..9" selects seeds
	MAKEFLAGS= cargo build --locked --bin ringfence
	target/debug/ringfence model --depth 14
	target/debug/ringfence sim $(SEARCH)

campaign:        ## Run the model, then fresh seeds with all faults for ten minutes. CAMPAIGN="--seeds 1..200" selects seeds
	MAKEFLAGS= cargo build --locked --profile campaign --bin ringfence
	nice -n 19 target/campaign/ringfence model --depth 14
	nice -n 19 target/campaign/ringfence sim $(CAMPAIGN)

chaos:           ## Run random faults on a lab for thirty minutes; root. DURATION=SECONDS SEED=N repeats a run
	scripts/setup.sh lab
	cargo build --locked --bin ringfence
	target/debug/ringfence scenario chaos --seconds $(or $(DURATION),1800) $(if $(SEED),--seed $(SEED))

scale:           ## Simulate 1,000 hosts and 10,000 VMs; 50 hosts fail within a minute
	cargo build --locked --release --bin ringfence
	target/release/ringfence scenario run --stats examples/scale/thousand-hosts.toml

sabotage:        ## Break the rules on purpose, one at a time, and report which test notices
	scripts/setup.sh test
	scripts/sabotage.sh

prove:           ## Prove I1 for any number of controllers, hosts and VMs, and check that each of its rules is required
	scripts/setup.sh prove
	target/tools/bin/python scripts/prove.py

mutants:         ## Break the decisions one expression at a time and report what no test notices; hours. MUTANTS="--file FILE" selects a file
	scripts/setup.sh mutants
	cargo mutants --package ringfence-actors $(MUTANTS)

many-vms:        ## Fail over 20 VMs of one host; root, needs both cores
	scripts/setup.sh test
	VMS=20 cargo nextest run --locked --workspace --run-ignored all --test campaigns all_vms_of_one_host

linux-guest:     ## Kill the vhost target of a Linux guest 20 times with 24 requests in flight
	scripts/setup.sh test
	KILLS=20 cargo nextest run --locked --workspace --test linux_guest

fuzz:            ## Run libFuzzer on each reader of external bytes for FUZZ_SECONDS (60); findings are kept and reported
	scripts/setup.sh fuzz
	scripts/fuzz.sh

fuzz-keep:       ## Add the new inputs of `make fuzz` to the corpus, minimized
	scripts/fuzz.sh keep

bench:           ## Compare the bus with other actor libraries, and measure a recovery cycle of 100,000 hosts
	cargo bench --locked --package ringfence-benches
