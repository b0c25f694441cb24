# Everything runs in .venv, which the first target that needs it sets up. Needs make and Python 3.11, 3.12 or 3.13 with venv.
# The newest that runs here; another is chosen by make PYTHON=/path/to/python3.11. An environment of another version is made anew.
PYTHON ?= $(or $(firstword $(foreach p,python3.13 python3.12 python3.11,$(shell $(p) -c 'import ensurepip, venv; print("$(p)")' 2>/dev/null))),python3)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Three processes on two cores, each with whole files of tests: much of the time is waiting for Ray.
IN_PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup try demo test test-all check check-install lock dictionary clean

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

check-install: $(STAMP)  ## the wheel in a fresh environment for each extra, and its commands; ARGS="core density" for some
	$(RUN) .ci/check_install.py $(ARGS)

lock: $(STAMP)  ## requirements.lock for a changed pyproject.toml; ARGS=--upgrade takes the newest versions
	$(RUN) .ci/lock.py $(ARGS)

dictionary: $(STAMP)  ## docs/reference/data_dictionary.md from the schemas
	$(RUN) -c 'from pathlib import Path; from dataset_builder.exports.dictionary import PAGE, dictionary_page; Path(PAGE).write_text(dictionary_page())'

clean:  ## removes what make and the checks wrote, but for .venv
	rm -rf *.egg-info build demo try .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

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
	$(VENV)/bin/pip install --quiet --require-hashes -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
