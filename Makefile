# Every job that people and CI run. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
PLUGINS := $(wildcard plugins/*)
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)

# Bytecode is kept, whatever the environment says: without it each process compiles torch anew (10 s).
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup fmt check check-types check-rest test test-slow demo bench docs pictures models dist constraints clean

help:  ## list the jobs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## system packages (as root) and .venv with everything in it

$(READY): pyproject.toml constraints.txt .ci/system-packages
	@bash .ci/system-packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "slidelens needs Python 3.11 to 3.13: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt \
		--editable '.[all]' --group dev $(PLUGINS:%=--editable %)
	@touch $@

fmt: $(READY)  ## format the code, sort what can be sorted, draw the architecture anew
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/python docs/architecture_picture.py

check: $(READY)  ## lint, types, layers, their picture, manifest, docs
	@$(MAKE) --no-print-directory --jobs 2 check-types check-rest

check-types:
	$(BIN)/mypy

check-rest:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/architecture_picture.py --check
	$(BIN)/npe2 validate slidelens
	$(BIN)/mkdocs build --strict --quiet --site-dir site

test: $(READY)  ## all quick tests
	@bash .ci/system-packages test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(READY)  ## the tests that take minutes
	@bash .ci/system-packages test
	$(BIN)/python -m pytest -m "slow"

demo: $(READY)  ## a cohort, a model, heatmaps: the main job on embedded data
	$(BIN)/slidelens demo --out demo

bench: $(READY)  ## run all benchmarks and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

docs: $(READY)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --site-dir site

pictures: $(READY)  ## make the pictures of README and docs anew
	$(BIN)/python docs/make_pictures.py

models: $(READY)  ## train the bundled model packages anew
	$(BIN)/python models/make.py

dist: $(READY)  ## sdist and wheel, and the demo from the wheel in a clean environment
	rm -rf dist build/clean
	$(BIN)/python -m build --installer uv --outdir dist .
	$(PYTHON) -m venv build/clean
	$(BIN)/uv pip install --quiet --python build/clean/bin/python --constraints constraints.txt dist/*.whl
	build/clean/bin/slidelens demo --out build/clean/demo
	build/clean/bin/slidelens new-plugin trial --out build/clean/slidelens-trial

constraints: $(READY)  ## resolve constraints.txt anew (names no package host)
	$(BIN)/uv pip compile --universal --python-version 3.11 pyproject.toml --all-extras --group dev \
		--no-header --no-annotate --quiet --upgrade --output-file constraints.txt

clean:  ## remove what the jobs made, and .venv
	rm -rf $(VENV) dist build site demo tests/_pictures .pytest_cache .mypy_cache .ruff_cache .hypothesis
