# `make` alone lists the targets. Every target sets up what it needs in .venv; only Python itself must be there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
V4 := $(VENV)/v4
BIN := $(VENV)/bin
OUT ?= outputs/demo
JOBS ?= logical
ARGS ?=

export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60

# One thread a process: two test processes on two cores beat one process with two threads.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist worksteal
VERSIONS = $(BIN)/python tests/print_versions.py

# pip retries each request; the second try is for a connection that breaks off in the middle of a file.
define pip_install
{ $(BIN)/python -m pip install --quiet $(1) || { echo "pip failed; trying once more." >&2; sleep 5; \
$(BIN)/python -m pip install --quiet $(1); }; }
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.stamp ## Create the environment in .venv (again only when setup.cfg changes)

$(VENV)/.stamp: setup.cfg
	@.ci/make_venv $(VENV)
	@echo "Installing the package and its tools into $(VENV): with torch some gigabytes, a few minutes the first time."
	@$(call pip_install,--editable '.[dev]')
	@touch $@

$(V4)/.stamp: $(VENV)/.stamp tests/transformers_v4.txt
	@echo "Laying transformers 4 over the environment, in $(V4)."
	@rm -rf $(V4) && mkdir -p $(V4)
	@$(BIN)/python -m pip install --quiet --dry-run --report $(V4)/report.json --requirement tests/transformers_v4.txt
	@$(BIN)/python -c 'import json; [print("{name}=={version}".format_map(item["metadata"])) \
	for item in json.load(open("$(V4)/report.json"))["install"]]' > $(V4)/overlay.txt
	@$(call pip_install,--target $(V4) --upgrade --no-deps --requirement $(V4)/overlay.txt)
	@touch $@

.PHONY: demo
demo: $(VENV)/.stamp ## Run the main job end to end on the embedded shop (OUT=outputs/demo)
	@$(BIN)/ofa-hf demo $(OUT) --json $(ARGS)

.PHONY: test
test: $(VENV)/.stamp ## Run the tests (ARGS="tests/unit/cli -x" to choose)
	@$(VERSIONS) 5
	@$(PYTEST) $(ARGS)

.PHONY: test-v4
test-v4: $(V4)/.stamp ## Run the same tests on transformers 4.57.6
	@PYTHONPATH=$(CURDIR)/$(V4) $(VERSIONS) 4
	@PYTHONPATH=$(CURDIR)/$(V4) $(PYTEST) $(ARGS)

.PHONY: bench
bench: $(VENV)/.stamp ## Measure what the performance table says (every benchmarks/bench_*.py)
	@shopt -s nullglob; scripts=(benchmarks/bench_*.py); \
	[ $${#scripts[@]} -gt 0 ] || { echo "Nothing to measure: benchmarks/ holds no bench_*.py." >&2; exit 1; }; \
	for script in "$${scripts[@]}"; do $(BIN)/python "$$script" $(ARGS); done

.PHONY: stress
stress: $(VENV)/.stamp ## Half an hour of hostile input, kills, full disks and long runs, with a fresh seed
	@$(BIN)/python tests/stress/run.py $(ARGS)

.PHONY: audit
audit: $(VENV)/.stamp ## Ask the advisory database about the installed packages (needs the network)
	@$(BIN)/python -m pip install --quiet pip-audit
	@$(BIN)/python -m pip_audit --local --skip-editable --progress-spinner off

.PHONY: style
style: $(VENV)/.stamp ## Check style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet --diff .

.PHONY: format
format: $(VENV)/.stamp ## Mend what can be mended automatically
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## Remove the environment, caches and outputs
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
