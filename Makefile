PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := compiler kernels tests

.DEFAULT_GOAL := help
.PHONY: help demo test lint types format golden train-digits clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	@touch $@

demo: $(VENV)/.demo ## Compile a trained classifier, run it, show its kernels
	$(BIN)/python -m tilewright.explore.demo

test: lint types ## Everything that must hold: style, types, tests (AVX2 only, then this machine)
	NUMBA_CPU_NAME=haswell $(BIN)/python -m pytest -q -n 2 -m avx2
	$(BIN)/python -m pytest -q -n 2

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy $(PACKAGES)

format: $(VENV)/.dev ## Apply style
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

golden: $(VENV)/.dev ## Accept the generated sources of today as golden
	$(BIN)/python -m pytest -q tests/test_golden.py --update-golden

train-digits: $(VENV)/.dev ## Train the demo's model anew
	$(BIN)/python -m pip install --quiet scikit-learn
	$(BIN)/python -m tilewright.explore.train_digits

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
