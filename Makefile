# The vocabulary of this project; `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(BIN)/uv
LATEST := .venv-latest
JOBS ?= auto

# Where it is set, every process would compile what it imports anew: importing mlflow then takes three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: run
run: $(STAMP)  ## Live four months of the embedded shop, from first champion to rollback
	@$(BIN)/python -m flows.run

.PHONY: up
up: $(STAMP)  ## Start a Prefect server, a worker and the endpoints of dev, and deploy everything there
	@$(BIN)/python -m flows.run prefect up
	@$(BIN)/python -m flows.run up

.PHONY: down
down: $(STAMP)  ## End what `make up` started
	@$(BIN)/python -m flows.run down
	@$(BIN)/python -m flows.run prefect down

.PHONY: test
test: $(STAMP)  ## Run every test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: test-fast
test-fast: $(STAMP)  ## Run the fast part of the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

.PHONY: lint
lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## Put the code into the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(STAMP)  ## Measure against peers; writes benchmarks/results
	$(BIN)/python -m benchmarks

.PHONY: lock
lock: $(STAMP)  ## Resolve the newest versions into the lock
	$(UV) pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--group dev pyproject.toml -o requirements/lock.txt

.PHONY: test-latest
test-latest: $(STAMP)  ## Run the tests on the newest versions the index has
	$(UV) venv -q --clear --python $(BIN)/python $(LATEST)
	$(UV) pip install -q --python $(LATEST)/bin/python --compile-bytecode --upgrade --group dev -e .
	$(LATEST)/bin/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: clean
clean:  ## Remove environments and caches; data under .contender stays
	rm -rf $(VENV) $(LATEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(STAMP): requirements/lock.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Contender needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "Setting up $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(UV) pip install -q --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/lock.txt
	@$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/python -m flows.server
	@touch $@
