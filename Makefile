PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q
PACKAGES := compiler kernels tests benchmarks notebooks docs
MODELS ?= benchmarks/models

.DEFAULT_GOAL := help
.PHONY: help demo test test-avx2 lint types format golden notebooks lab docs bench bench-gpu sass models \
	train-digits clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## Compile a trained classifier, check its answers, show its kernels
	@$(BIN)/python -m tilewright.explore.demo

test: lint types test-avx2 ## Everything that must hold: style, types, all tests
	$(PYTEST) -n 2

ifeq ($(shell uname -m),x86_64)
test-avx2: $(VENV)/.dev ## Some tests again, with kernels for AVX2 and nothing newer
	NUMBA_CPU_NAME=haswell $(PYTEST) -n 2 -m avx2
else
test-avx2:
endif

lint: $(VENV)/.dev ## Check the style
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check --quiet $(PACKAGES)

types: $(VENV)/.dev ## Check the types
	$(BIN)/mypy $(PACKAGES)

format: $(VENV)/.dev ## Apply the style
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

golden: $(VENV)/.dev ## Accept the texts of today as golden; review them with git diff
	$(PYTEST) -m golden --update-golden

notebooks: $(VENV)/.docs ## Execute all lessons; they are in build/lessons then, also as pages
	$(BIN)/python notebooks/execute.py --out build/lessons --html

lab: $(VENV)/.lab ## Open the lessons in JupyterLab
	$(BIN)/jupyter lab notebooks

docs: $(VENV)/.docs ## Build the site of lessons and reference, in build/site
	$(BIN)/python notebooks/execute.py --out docs/site/lessons
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.bench $(if $(wildcard $(MODELS)/*.onnx),,models) ## Measure everything in the README anew
	$(BIN)/tilewright bench $(MODELS)/*.onnx --threads 1 2 --memory --json docs/performance.json --picture docs/performance.svg
	$(BIN)/tilewright bench --gemm --threads 1 --json docs/gemm.json
	$(BIN)/python benchmarks/report.py

bench-gpu: $(VENV)/.gpu ## Check and measure all that wants an NVIDIA GPU (PyTorch is large)
	$(BIN)/python benchmarks/gpu.py --models $(MODELS) $(RUN)

sass: $(VENV)/.cuda $(if $(wildcard $(MODELS)/*.onnx),,models) ## Compile the models' CUDA kernels to machine code; no GPU is needed
	$(BIN)/tilewright compile $(MODELS)/*.onnx --target cuda --arch sm_80 sm_90a --json docs/cuda_sass.json
	$(BIN)/python benchmarks/report.py

models: $(VENV)/.export ## Export the models that `make bench` measures (PyTorch is large)
	$(BIN)/python benchmarks/export.py --out $(MODELS)

train-digits: $(VENV)/.train ## Train the demo's model anew
	$(BIN)/python -m tilewright.explore.train_digits

clean: ## Remove the environment and caches
	rm -rf $(VENV) build docs/site/lessons .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, as in: make PYTHON=python3.12 test")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# With the CUDA wheels, CUDA kernels are tested: compiled to machine code, and run by an emulator
# where there is no GPU. Not every platform has those wheels.
$(VENV)/.dev: $(VENV)/.python pyproject.toml
	@$(INSTALL) -e '.[dev,cuda]' || { \
		echo '*** The CUDA wheels cannot be installed here: tests of CUDA kernels are SKIPPED. ***' >&2; \
		$(INSTALL) -e '.[dev]'; }
	@touch $@

$(VENV)/.bench $(VENV)/.cuda $(VENV)/.demo $(VENV)/.docs $(VENV)/.export $(VENV)/.gpu $(VENV)/.lab $(VENV)/.train: $(VENV)/.%: $(VENV)/.python pyproject.toml
	$(INSTALL) -e '.[$*]'
	@touch $@
