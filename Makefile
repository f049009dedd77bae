# Two commands are enough to start: `make demo` and `make test`. Both create .venv if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One worker for each core. Whoever is idle takes half of what another has left, so neighbours stay together.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# Hundreds of processes that tests start would each compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

.PHONY: help install demo test test-all check docs site clean

help:
	@echo "make demo      install into .venv and build the embedded example for a Jetson"
	@echo "make install   install into .venv with everything the tests need"
	@echo "make test      the fast tests"
	@echo "make test-all  the slow ones too"
	@echo "make check     format, lint, types, import layers, generated documents, the site"
	@echo "make docs      write the generated documents anew"
	@echo "make site      build the documents' site into docs/site"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.core: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/.core

install: $(VENV)/.dev

demo: $(VENV)/.core
	cd examples/digits && ../../$(BIN)/deploy build --target jetson
	cd examples/digits && ../../$(BIN)/deploy inspect dist/jetson

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev
	$(PYTEST) -m ''

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/coverage.py --check
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && $(MKDOCS) -d "$$site"

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/coverage.py

site: $(VENV)/.dev
	$(MKDOCS)

clean:
	rm -rf docs/site $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis examples/digits/dist
