# Every target sets up what it needs in .venv by itself. A stamp file remembers that it is done, so
# a second call is instant; it is done again when pyproject.toml or constraints.txt change.
#
#   make demo PYTHON=/opt/python3.12/bin/python3      choose the Python (3.11 or newer)
#   make test PYTEST="tests/core -x"                  choose the tests

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
DEMO := omenn-demo
PYTHON ?= python3
WORKERS := -n auto --maxprocesses 4 --dist worksteal
PYTEST ?= $(WORKERS) -m "not slow"
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: help map demo test experiments-test fuzz check lint types format hooks clean distclean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(VENV)/.base ## explain four birds and write the page (needs Python alone)
	@$(BIN)/omenn demo --out $(DEMO)
	@echo "The page: file://$(CURDIR)/$(DEMO)/index.html"

test: $(VENV)/.test ## the tests, without the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

experiments-test: $(VENV)/.test ## the tests of the experiments, which write the tables of docs/
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) tests/experiments

fuzz: $(VENV)/.test ## 20,000 random networks against their dense maps (the suite has 300)
	@OMENN_FUZZ=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz $(PYTEST)

check: lint types all ## what must hold before a commit: lint, types, all tests

all: $(VENV)/.test ## all tests, the slow ones among them
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

lint: $(VENV)/.test ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(VENV)/.test ## pyright
	@$(BIN)/pyright

format: $(VENV)/.test ## let ruff repair what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

hooks: $(VENV)/.test ## run lint and types before every commit (git hook)
	@$(BIN)/pre-commit install

map: ## the files of the package, each with its first line
	@find src/omenn -name '*.py' | sort | while read -r file; do \
	  printf '%-48s %s\n' "$${file#src/omenn/}" "$$(head -n 1 "$$file" | tr -d '"`')"; \
	done

clean: ## remove what the other targets wrote, except .venv
	@rm -rf $(DEMO) dist .pytest_cache .ruff_cache .hypothesis
	@find src tests experiments -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	@rm -rf $(VENV)

# The package alone, as `make demo` needs it.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(find_or_create_venv)
	@echo "Installing $(TORCH) into $(VENV) ..."
	@$(PIP) $(TORCH)
	@echo "Installing omenn and what it needs ..."
	@$(PIP) hatchling
	@$(PIP) --no-build-isolation --editable .
	@touch $@

# What tests and checks need besides.
$(VENV)/.test: $(VENV)/.base
	@echo "Installing the extras models, graphs, peers, training, bench, zoo, test ..."
	@$(PIP) --no-build-isolation --editable '.[models,graphs,peers,training,bench,zoo,test]'
	@touch $@

define find_or_create_venv
new_enough() { "$$@" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
if ! { new_enough $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1; }; then \
  found=; \
  for python in $(PYTHON) $(if $(filter python3,$(PYTHON)),python3.14 python3.13 python3.12 python3.11); do \
    if new_enough $$python; then found=$$python; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    version=$$($(PYTHON) --version 2>/dev/null) || version="not a Python that runs"; \
    echo "omenn needs Python 3.11 or newer, but '$(PYTHON)' is $$version." >&2; \
    echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
    exit 1; \
  fi; \
  echo "Creating $(VENV) with $$($$found --version) ..."; \
  if ! $$found -m venv --clear $(VENV) >/dev/null; then \
    echo "'$$found -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2; \
    exit 1; \
  fi; \
fi
endef
