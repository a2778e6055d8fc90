# raftkv: `make run`, `make cluster`, `make test`. Needs Python 3.11 or later, nothing else.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/runs
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILED_TREE := build/compiled
SIMULATOR_TREE := build/simulator
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header

.PHONY: help run cluster compiled certs test soak sim fuzz partition partition-compose failover bench bench-compare lint format proto lock clean
help:
	@echo "make run      start one member on http://localhost:2379 (ARGS='--name a …' for flags)"
	@echo "make cluster  start three members on this machine"
	@echo "make certs    write certificates for development to ./certs (docs/tls.md)"
	@echo "make compiled compile what every request passes; run, cluster, bench and sim take COMPILED=1"
	@echo "make test     run the test suite; the long tests are left to make soak"
	@echo "make soak     the tests that take minutes or hours, with their figures (ARGS='tests/cluster/test_rolling.py')"
	@echo "make sim      search for bugs under virtual time (ARGS='--seeds 1000'; docs/guarantees.md)"
	@echo "make partition  cut, pause and kill real members, and check what clients saw"
	@echo "make partition-compose  the same to the cluster of docker-compose.yml, where a Docker engine answers"
	@echo "make failover   kill leaders of etcd and raftkv: seconds until the next write (ARGS='--times 10')"
	@echo "make fuzz     look for inputs that break it (ARGS='wal --inputs 100000'; docs/fuzzing.md)"
	@echo "make bench    measure etcd and raftkv side by side (ARGS='--quick' for a look)"
	@echo "make bench-compare A=main B=.  hold two commits of raftkv against each other, with intervals"
	@echo "make lint     ruff, mypy, import-linter, freshness of raftkv/pb, pip-audit"
	@echo "make proto    generate raftkv/pb from proto/"
	@echo "make lock     renew the lock files from pyproject.toml"

# PYTHON=/path/to/python chooses one; else the newest that runs (a pyenv shim may be there and not run).
$(VENV)/bin/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "raftkv needs Python 3.11 or later with venv, and $(or $(PYTHON:%=% is none),found none): install it," \
		"or say make PYTHON=/path/to/python" >&2; exit 1; }; \
	$$python -m venv $(VENV)

# What runs raftkv; a few seconds.
$(RUNS): requirements-run.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) …"
	@$(PIP) --require-hashes -r requirements-run.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# What tests and checks it as well.
$(READY): requirements.lock pyproject.toml $(RUNS)
	@echo "installing the development tools into $(VENV) …"
	@$(PIP) --require-hashes -r requirements.lock
	@touch $@

# A copy of the sources whose hot modules are compiled; made anew when any source is newer.
$(COMPILED_TREE)/made: scripts/compile.py $(shell find raftkv cli -name '*.py') | $(READY)
	@nice $(BIN)/python scripts/compile.py
	@touch $@

compiled: $(COMPILED_TREE)/made

$(SIMULATOR_TREE)/made: scripts/compile.py $(shell find raftkv cli -name '*.py') | $(READY)
	@nice $(BIN)/python scripts/compile.py --simulator
	@touch $@

# COMPILED=1 runs such a copy.
ifdef COMPILED
sim: $(SIMULATOR_TREE)/made
sim: export PYTHONPATH := $(CURDIR)/$(SIMULATOR_TREE)
# Each store that LMDB opens begins with 2 MB of zeros: glibc is to ask the system for them, not to write them.
sim: export MALLOC_MMAP_THRESHOLD_ := 131072
run cluster bench: $(COMPILED_TREE)/made
run cluster: export PYTHONPATH := $(CURDIR)/$(COMPILED_TREE)
endif

run: $(RUNS)
	@echo "In another terminal: $(BIN)/raftctl put hello world; $(BIN)/raftctl get hello. Ctrl-C here stops."
	@exec $(BIN)/raftkv $(ARGS)

cluster: $(RUNS)
	@exec $(BIN)/python scripts/cluster.py $(ARGS)

certs: $(RUNS)
	@$(BIN)/python scripts/certs.py $(ARGS)

# Two at a time, each file's tests in their order by one worker; ARGS='-n 0 tests/unit' takes one and some.
test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(READY)
	@$(BIN)/python -m pytest -q -s -m soak $(ARGS)

sim: $(READY)
	@exec $(BIN)/raftkv sim $(ARGS)

partition: $(READY)
	@$(BIN)/python -m pytest tests/partition/test_partition.py -q -m 'soak or not soak' $(ARGS)

partition-compose: $(READY)
	@$(BIN)/python -m pytest tests/partition/test_compose.py -q -m 'soak or not soak' $(ARGS)

failover: $(READY)
	@exec $(BIN)/python -m benchmarks.failover $(ARGS)

fuzz: $(READY)
	@exec $(BIN)/python -m tests.fuzz $(ARGS)

bench: $(READY)
	@exec $(BIN)/python -m benchmarks $(ARGS)

bench-compare: $(READY)
	@exec $(BIN)/python -m benchmarks.compare $(or $(A),HEAD) $(or $(B),.) $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/proto.py --check
	@$(BIN)/python scripts/audit.py

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(READY)
	@$(BIN)/python scripts/proto.py

# The second lock is what the Docker image holds: the same versions without the development tools. The third is pip-audit.
lock: $(READY)
	@$(BIN)/python -m pip install --quiet uv
	@$(COMPILE) --extra dev --extra build pyproject.toml -o requirements.lock
	@$(COMPILE) --extra build -c requirements.lock pyproject.toml -o requirements-run.lock
	@echo 'pip-audit>=2.9' | $(COMPILE) - -o requirements-audit.lock

clean:
	rm -rf $(VENV) build *.egg-info
