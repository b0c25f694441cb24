# Everything runs in .venv, which the first target that needs it sets up. Needs make and Python 3.11, 3.12 or 3.13 with venv.
# The newest that runs here; another is chosen by make PYTHON=/path/to/python3.11. An environment of another version is made anew.
PYTHON ?= $(or $(firstword $(foreach p,python3.13 python3.12 python3.11,$(shell $(p) -c 'import ensurepip, venv; print("$(p)")' 2>/dev/null))),python3)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Three processes on two cores, each with whole files of tests: much of the time is waiting for Ray.
# A process that dies ends the run: xdist can hang after it has replaced one.
IN_PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
TYPES := $(RUN) -m mypy --strict
# mypy keeps one core busy for over a minute: the tests begin beside it.
WITH_TYPES = @$(TYPES) & types=$$!; $(1); tests=$$?; wait $$types || { echo "error: mypy found what its lines above tell" >&2; exit 1; }; exit $$tests

.DEFAULT_GOAL := help
.PHONY: help setup try demo test test-all faults check lint check-install lock reference docs docs-build clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP)  ## install the environment into .venv, from requirements.lock

try: $(STAMP)  ## make first pictures and captions in a minute: try/index.html
	$(RUN) -m examples.openmoji.first_look $(ARGS)

demo: $(STAMP)  ## run the whole pipeline offline on the small world, in 15 minutes; ARGS="--out quick …" for other settings
	$(RUN) -m examples.openmoji.demo $(ARGS)

test: lint  ## run set-up, formatting, lint, types and the fast tests
	$(call WITH_TYPES,$(RUN) -m pytest $(IN_PARALLEL) $(PYTEST_ARGS))

test-all: lint  ## run all of test, and the slow tests
	$(call WITH_TYPES,$(RUN) -m pytest -m "slow or not slow" $(IN_PARALLEL) $(PYTEST_ARGS))

faults: $(STAMP)  ## run the fault tests; at most 45 minutes; ARGS="--seed 7" repeats a run
	$(RUN) -m pytest tests/faults -m "slow or not slow" --all_faults --faults_file build/faults.json $(ARGS)

check: lint  ## run formatting, lint and types
	$(TYPES)

lint: $(STAMP)
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check

check-install: $(STAMP)  ## install the wheel with each extra in a fresh environment, and run its commands; ARGS="core density" for some
	$(RUN) .ci/check_install.py $(ARGS)

lock: $(STAMP)  ## update requirements.lock after a change of pyproject.toml; ARGS=--upgrade takes the newest versions
	$(RUN) .ci/lock.py $(ARGS)

reference: $(STAMP)  ## write docs/reference from the code: options of commands, the data dictionary
	$(RUN) -c 'from pathlib import Path; from website.reference import write_reference; write_reference(Path())'

docs: $(STAMP)  ## serve the documentation site at http://127.0.0.1:8000; it is rebuilt when a page changes
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve --strict $(ARGS)

docs-build: $(STAMP)  ## build the documentation site in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

clean:  ## remove what make and the checks wrote, except .venv
	rm -rf *.egg-info build demo try .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Bytecode is compiled on all cores, which pip does on one; templates among the packages are no Python, and fail.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11, 3.12 or 3.13, or name one, make PYTHON=/path/to/python3.13" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): name another, make PYTHON=/path/to/python3.13" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv: install it, on Debian and Ubuntu with apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 2; }
	@echo "$$($(PYTHON) -V) ($(PYTHON)), into $(VENV)"
	@version=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
	  if [ -d $(VENV)/lib ] && [ ! -d $(VENV)/lib/$$version ]; then echo "$(VENV) is of another version: made anew"; rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile --require-hashes -r requirements.lock
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
