# Everything runs in .venv, which the first target that needs it sets up. Needs make and Python 3.11 with venv, nothing else.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Two processes, each with whole files of tests: much of the time is waiting for Ray.
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup try demo test test-all check lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP)  ## the environment in .venv, from requirements.lock

try: $(STAMP)  ## first pictures and captions in a minute: try/index.html
	$(RUN) -m examples.openmoji.first_look $(ARGS)

demo: $(STAMP)  ## the whole way on this machine, offline, on the small world; ARGS="--out quick …" for other settings
	$(RUN) -m examples.openmoji.demo $(ARGS)

test: check  ## set-up, formatting, lint, types, tests
	$(RUN) -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

test-all: check  ## test and the slow tests
	$(RUN) -m pytest -m "slow or not slow" $(IN_PARALLEL) $(PYTEST_ARGS)

check: $(STAMP)  ## formatting, lint, types
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy --strict

lock: $(STAMP)  ## requirements.lock for a changed pyproject.toml; ARGS=--upgrade takes the newest versions
	$(RUN) .ci/lock.py $(ARGS)

clean:  ## removes what make and the checks wrote, but for .venv
	rm -rf *.egg-info build demo try .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or name one, make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): name another, make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv: install it, on Debian and Ubuntu with apt-get install python3.11-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --require-hashes -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
