# `make demo` and `make test` set themselves up: they need Python 3.11 or newer and nothing else.
# ARGS passes options on:  make demo ARGS='--json --seconds 60'    make test ARGS='tests/unit -k join'

.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHONS := python3 python3.13 python3.12 python3.11 python3.14 python
RECENT := import sys; sys.exit(sys.version_info < (3, 11))

# Hashes and versions, no addresses; one lock for all platforms. deploy/: what the images install, without torch to serve.
RESOLVE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command 'make lock' --quiet $(UPGRADE)

# The CUDA libraries that torch brings on Linux are large wheels; a slow line is no error.
export UV_HTTP_TIMEOUT := $(or $(UV_HTTP_TIMEOUT),300)
# Trust the certificates that the machine trusts, as pip does.
export UV_SYSTEM_CERTS := $(or $(UV_SYSTEM_CERTS),1)

.PHONY: help install demo test chaos poison check format bench schemas lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## the virtual environment alone; every target that needs it makes it

demo: $(INSTALLED) ## the whole loop on real data, on an embedded broker
	@$(BIN)/headwater demo $(ARGS)

test: $(INSTALLED) ## all tests; those on Apache Kafka need Java and Maven
	$(BIN)/python -m pytest $(ARGS)

chaos: $(INSTALLED) ## nothing lost, nothing twice, under faults, on Apache Kafka: make chaos KILLS=200 SEED=7 ARGS=--json
	@$(BIN)/python -m tests.chaos --kills $(or $(KILLS),20) --seed $(or $(SEED),1) $(ARGS)

poison: $(INSTALLED) ## bad records by the million among good ones: make poison ARGS='--records 1000000 --keep'
	@$(BIN)/python -m tests.poison $(ARGS)

check: $(INSTALLED) ## lint, format, types, the arrows between the packages, advisories against what is locked
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit

format: $(INSTALLED) ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## the benchmarks, or one: make bench NAME=throughput ARGS=--quick
	@set -e; for name in $(or $(NAME),$(sort $(basename $(notdir $(shell grep -ls __main__ benchmarks/*.py))))); do \
	  $(BIN)/python -m benchmarks.$$name $(ARGS); done

schemas: $(INSTALLED) ## write docs/events and headwater.example.toml anew from the code
	$(BIN)/python docs/generate.py

lock: $(INSTALLED) ## resolve the dependencies anew; UPGRADE=--upgrade takes the newest
	echo uv | $(RESOLVE) - -o requirements-installer.lock
	echo quixstreams==3.28.1 | $(RESOLVE) - -o benchmarks/peers/quix.lock
	echo quixstreams==3.28.1 | $(RESOLVE) - -o benchmarks/peers/quix.lock
	$(RESOLVE) pyproject.toml --all-extras -o requirements.lock
	$(RESOLVE) pyproject.toml --constraints requirements.lock -o deploy/train.lock
	echo 'torch ; python_version < "3"' | $(RESOLVE) pyproject.toml --constraints requirements.lock --overrides - -o deploy/serve.lock

clean: ## remove the environment, caches and builds; .headwater, the data of workers, stays
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Messages go to stderr: the last line of `make demo ARGS=--json` on stdout is the object.
# pip installs uv from its own small lock, uv installs the rest; all by hash. The index that pip is told to use is passed on.
$(INSTALLED): requirements.lock requirements-installer.lock pyproject.toml
	@set -e; exec >&2; \
	if ! $(BIN)/python -c '$(RECENT)' 2>/dev/null; then \
	  for python in $(PYTHON) $(PYTHONS) none; do \
	    if [ $$python = none ]; then echo 'Headwater needs Python 3.11 or newer on the PATH, or named: make PYTHON=/path/to/python3'; exit 1; fi; \
	    if $$python -c '$(RECENT)' 2>/dev/null; then break; fi; \
	  done; \
	  echo "Making $(VENV) with $$($$python --version) ..."; \
	  $$python -m venv $(VENV) || { echo 'This Python has no venv; on Debian and Ubuntu: apt-get install python3-venv'; exit 1; }; \
	fi; \
	echo 'Installing the locked dependencies (torch is large: see README, Installation) ...'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-installer.lock; \
	index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@touch $@
