# prdit on one machine. `make` lists the targets; each needs nothing but Python 3.11 (or 3.12) and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter prdit runs on; PYTHON=/path/to/python3.11 chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && { echo "$$p"; exit; }; done; true)
# Another place to take torch from, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu (no CUDA, 0.2 GB instead of 3).
TORCH_INDEX ?=
DICOM ?=
KEEP ?=
CONFIG ?= demo
ROUNDS ?= 10
ARGS ?=
SHOTS ?= .prdit/shots

VENV := .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin
CODE := flows tasks prdit_models storage

# gpu-check does not need prdit installed: the PYTHON that was named, else .venv's, else any.
GPU_PYTHON = $(or $(if $(filter-out file,$(origin PYTHON)),$(PYTHON)),$(wildcard $(BIN)/python),$(PYTHON),python3)

.PHONY: help setup demo up wheel down test lint bench drills gpu-check constraints third-party clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  settings: PYTHON=, TORCH_INDEX=, DICOM=<folder>, KEEP=1, CONFIG=<name or file>"

setup: $(STAMP) ## make .venv with everything in it (done once; again when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "prdit needs Python 3.11 or 3.12, and none is on PATH. Debian: apt-get install python3.11 python3.11-venv," >&2; \
			echo "then make setup; or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
		if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$(PYTHON) cannot make virtual environments: python3-venv is missing." >&2; \
			echo "Debian: apt-get install python3-venv (or python3.11-venv), then make setup again." >&2; exit 1; fi; \
		$(PYTHON) -m venv $(VENV); fi
	@echo "Installing prdit into $(VENV) from $(if $(TORCH_INDEX),$(TORCH_INDEX) (torch) and )the Python package index:"
	@echo "about 0.55 GB to download with a CPU build of torch, over 3 GB with PyPI's CUDA build (see TORCH_INDEX in README)."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed: $$(du -sh $(VENV) | cut -f1) in $(VENV)."

demo: $(STAMP) ## the whole pipeline on a synthetic phantom, or DICOM=<folder>; KEEP=1 leaves the servers up
	@$(BIN)/prdit demo --config '$(CONFIG)' $(if $(DICOM),--dicom '$(DICOM)') $(if $(KEEP),--keep)

up: $(STAMP) ## start Prefect server, MLflow server, worker and scan watcher; register the deployments (docs/operations.md)
	@$(BIN)/prdit up

wheel: $(STAMP) ## build dist/prdit-*.whl: pip install it anywhere, then prdit demo, or prdit up and prdit down
	@rm -rf build
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

down: $(STAMP) ## stop what `make up` or `make demo KEEP=1` started
	@$(BIN)/prdit down

lint: $(STAMP) ## ruff, import contracts, mypy strict
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run .venv/bin/ruff format ." >&2; exit 1; }
	@out=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$out" >&2; exit 1; }
	@$(BIN)/mypy

# Three files at a time on two cores: where processes and servers start, most of a test's time is waiting. Threads of PyTorch that wait
# for each other must not spin meanwhile: with more of them than cores, small tensors would take ten times as long.
test: lint ## lint, then every test (each drill once, at its smallest), three files at a time: what CI runs
	@OMP_WAIT_POLICY=passive $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench: $(STAMP) ## run the benchmarks and rewrite the tables of docs/benchmarks.md
	@$(BIN)/python -m tests.bench

drills: $(STAMP) ## random kills (ROUNDS=10 each), every page (SHOTS=<folder>), oldest and newest torch (6 GB to download); prints JSON
	@$(BIN)/python -m tests.drills $(ROUNDS) $(SHOTS)

gpu-check: ## compare an NVIDIA GPU with the CPU: values, speed, memory (PYTHON= with torch >= 2.10); ARGS=--tiny: on a CPU
	@$(GPU_PYTHON) -m tests.gpu_check $(ARGS)

constraints: $(STAMP) ## rewrite constraints.txt from what is installed in .venv
	@$(BIN)/python -m tests.constraints > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@touch $(STAMP)

third-party: $(STAMP) ## rewrite the licence table of THIRD_PARTY.md
	@$(BIN)/python -m tests.licences

clean: ## remove caches (never .venv, never .prdit)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks build *.egg-info
