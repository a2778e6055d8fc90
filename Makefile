# raftkv: `make run`, `make cluster`, `make test`. Needs Python 3.11 or later, nothing else.

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header

.PHONY: help run cluster test bench lint format proto lock clean
help:
	@echo "make run      start one member on http://localhost:2379 (ARGS='--name a …' for flags)"
	@echo "make cluster  start three members on this machine"
	@echo "make test     run the test suite"
	@echo "make bench    measure etcd and raftkv side by side (ARGS='--quick' for a look)"
	@echo "make lint     ruff, mypy, import-linter, freshness of raftkv/pb"
	@echo "make proto    generate raftkv/pb from proto/"
	@echo "make lock     renew the lock files from pyproject.toml"

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "raftkv needs Python 3.11 or later, and found none: install it, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY)
	@exec $(BIN)/raftkv $(ARGS)

cluster: $(READY)
	@exec $(BIN)/python scripts/cluster.py $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest $(ARGS)

bench: $(READY)
	@exec $(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/proto.py --check

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(READY)
	@$(BIN)/python scripts/proto.py

# The second lock is what the Docker image holds: the same versions without the development tools.
lock: $(READY)
	@$(BIN)/python -m pip install --quiet uv
	@$(COMPILE) --extra dev --extra build pyproject.toml -o requirements.lock
	@$(COMPILE) --extra build -c requirements.lock pyproject.toml -o requirements-run.lock

clean:
	rm -rf $(VENV) build *.egg-info
