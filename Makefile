# Everything a person needs: `make demo` and `make test` make their own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow check bench ladder docs clean

help: ## List what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# torch first and alone, pinned: that resolves to the build without CUDA packages where one is offered, and everything
# after it finds it in place. `make READY` again costs nothing until a file named here changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[photos,tensorboard]" -r requirements-dev.txt
	touch $(READY)

demo: $(READY) ## Pretrain on bundled photographs in about two minutes and show what was learnt.
	$(BIN)/glocal demo out=runs/demo

test: $(READY) ## Formatting, lint, types and all fast tests.
	$(MAKE) check
	$(BIN)/python -m pytest

test-slow: $(READY) ## All tests, slow ones included.
	$(BIN)/python -m pytest -m ""

check: $(READY) ## Formatting, lint and types.
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

bench: $(READY) ## Measure every promised ratio, compare with the last record; about fifteen minutes on two cores.
	$(BIN)/python -m benchmarks

SCALE ?= cpu
DATA ?= data
ladder: $(READY) ## Train and measure every recipe at equal compute (SCALE=short|medium|cpu|gpu DATA=FOLDER); resumable.
	$(BIN)/glocal ladder scale=$(SCALE) data=$(DATA)

docs: $(READY) ## The site of the documentation, in build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

clean: ## Remove the environment and caches; runs stay.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
