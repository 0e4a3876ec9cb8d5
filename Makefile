# Each target makes .venv with what it needs and then does its work; a second run installs nothing.
# PYTHON=/path/to/python uses that interpreter as it is and installs nothing.
# JOBS=0 runs the tests in one process with all BLAS threads; by default there is a worker for each core,
# two to four. SWEEPS=sample, changed or all: which cases of the long sweeps `make test` takes.

PYTHON ?=
JOBS ?= $(shell python3 -c 'import os; print(min(4, max(2, os.cpu_count() or 2)))')
SWEEPS ?= sample

ifeq ($(strip $(PYTHON)),)
PY := .venv/bin/python
environment := @python3 tools/venv.py
else
PY := $(PYTHON)
environment := @: no installation of
endif

# Workers with one BLAS thread each: with more they would fight for the cores. One that has nothing left
# to do takes tests from another (worksteal).
ifeq ($(JOBS),0)
PYTEST = $(PY) -m pytest
else
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all check signatures docs release bench gpu clean

help: ## show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST))

demo: ## train on handwritten digits and leave the result in runs/digits/
	$(environment) cli,sklearn
	$(PY) -m gpubackprop train --output runs/digits

test: ## run all tests that need no GPU; of the long sweeps a sample, another one each day
	$(environment) dev
	$(PYTEST) --sweeps=$(SWEEPS)

test-all: ## run them with every case of the sweeps, and write down what passed
	$(environment) dev
	GPUBACKPROP_RECORD=1 $(PYTEST)

check: ## run ruff, mypy and the fast tests
	$(environment) dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) --sweeps=sample -m "not slow and not emulated"

signatures: ## hold the stand-in for CuPy to CuPy itself, which is put into .cupy/ for it
	$(environment) dev
	$(PY) -m pip install --quiet --upgrade --target .cupy --no-deps "cupy-cuda13x>=14.2,<15" cuda-pathfinder
	PYTHONPATH=.cupy $(PY) -m pytest tests/test_cupy_signatures.py

docs: ## build the documentation into build/site/ and look at it: every example, link and page
	$(environment) docs
	PYTHONPATH=. $(PY) -m tools.site
	GPUBACKPROP_SITE=build/site $(PY) -m pytest tests/test_site.py tests/test_lecture_pages.py tests/test_doctests.py
	GPUBACKPROP_SITE=build/site $(PY) -m pytest tests/test_documents.py -k "python_block or link or command"

release: ## build wheel and sdist twice into dist/, compare and check them: make release [TAG=v1.2.3]
	$(environment) release
	$(PY) -m tools.release dist --tag "$(TAG)"

bench: ## run every benchmark against every peer, into benchmarks/results/ and the README
	$(environment) dev,bench
	PYTHONPATH=. $(PY) -m benchmarks

gpu: ## run the proof on an NVIDIA GPU: make gpu OUT=dir [PYTHON=python3] [STAGES=parity,pytest] [MINUTES=8]
	$(environment) $(or $(EXTRAS),dev,bench,cuda13)
	PYTHONPATH=. $(PY) -m tools.gpu $(or $(OUT),runs/gpu) --stages "$(STAGES)" --minutes $(or $(MINUTES),8)

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv .cupy build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks docs/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
