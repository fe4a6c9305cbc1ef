# Needs Python ≥ 3.11, make and a package index; everything else goes into .venv. Paths are relative throughout, so that
# the checkout may lie below a folder with a space in its name.

BIN := .venv/bin
STAMP := .venv/installed

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

DATASET ?= digits
DATA_DIR ?=
export DATASET DATA_DIR
ARGS ?=
SEED ?=
JOBS ?= 80
FAULTS ?= 100
EXAMPLES ?= 200

# Whoever wants no bytecode would have each of the tests' processes compile all of it anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test acceptance bench chaos fuzz frontier recount lint types openapi up clean

help: ## Show this list
	@echo 'make TARGET, of which there are:'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F '|' '{ printf "%-10s %s\n", $$1, $$2 }'

setup: $(STAMP) ## Make the virtual environment in .venv, or bring it up to date

demo: $(STAMP) ## Train, prune and compare through the real service: [DATASET=digits] [DATA_DIR=folder]
	@$(BIN)/secateur demo --dataset "$$DATASET" $${DATA_DIR:+--data-dir "$$DATA_DIR"}

# Three processes for two cores: each waits a fifth of its time, for servers and workers. The second call imports only the
# files in which something is marked.
test: lint types ## Check everything: lint, types and all tests; ARGS='-k name -x' go to pytest
	@if test -n "$(ARGS)"; then $(BIN)/python -m pytest $(ARGS); else \
		$(BIN)/python -m pytest -n 3 --dist loadfile && \
		$(BIN)/python -m pytest -m alone $$(grep -rl --include='*.py' 'mark\.alone' tests); fi

acceptance: $(STAMP) ## Check what takes longer: experiment, demo, slow faults; ARGS go to pytest, TEST_DATA_DIR=folder takes MNIST
	$(BIN)/python -m pytest -m 'acceptance or chaos' $(ARGS)

chaos: $(STAMP) ## Short jobs under random faults, and the verdict: [SEED=…] [JOBS=80] [FAULTS=100]
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --jobs $(JOBS) --faults $(FAULTS)

fuzz: $(STAMP) ## Made-up requests for minutes, every answer held against the description: [SEED=…] [EXAMPLES=200]
	@$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED)) --examples $(EXAMPLES)

bench: $(STAMP) ## Measure how fast it is, against plain alternatives: [DATA_DIR=folder]; ARGS='--only training --quick'
	$(BIN)/python -m benchmarks.bench $(ARGS)

frontier: $(STAMP) ## Prune MNIST networks as far as they go and write it down, for hours: DATA_DIR=folder; ARGS='--seeds 0'
	@test -n "$$DATA_DIR" || { echo 'Say where MNIST/raw is: make frontier DATA_DIR=folder' >&2; exit 1; }
	$(BIN)/python -m benchmarks.frontier "$$DATA_DIR" $(ARGS)

recount: $(STAMP) ## Count and measure the networks of benchmarks/frontier.md again, with numpy alone: DATA_DIR=folder
	@test -n "$$DATA_DIR" || { echo 'Say where MNIST/raw is: make recount DATA_DIR=folder' >&2; exit 1; }
	@$(BIN)/python -m benchmarks.frontier.recount "$$DATA_DIR"

lint: $(STAMP) ## Check style, formatting and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## Check the types
	$(BIN)/mypy

openapi: $(STAMP) ## Renew the copy of the API's description, which a test compares
	$(BIN)/python -m app.api.describe docs/openapi.json

up: $(STAMP) ## Run the service here until Ctrl-C; ARGS='--port 9000' go to `secateur up`
	@$(BIN)/secateur up $(ARGS)

clean: ## Remove .venv, caches and demo-output; .secateur, which holds your jobs, stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf build dist *.egg-info clients/python/build clients/python/*.egg-info demo-output
	find app clients worker migrations tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Last of all the stamp: a set-up that was cut short starts over.
$(STAMP): pyproject.toml clients/python/pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No Python of 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is not a Python of 3.11 or newer.' >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, apt install python3-venv.' >&2; exit 1; }
	@echo 'Setting up .venv, 5 GB with PyTorch: a minute or more …'
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./clients/python -e '.[worker,local,otel,dev]'
	@touch $(STAMP)
