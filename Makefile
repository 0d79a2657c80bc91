# Everything starts from a clean clone with Python 3.11, a C++ compiler and CMake; the first run builds libllama.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STEP := $(PYTHON) scripts/step.py

.PHONY: demo demo-short test slow test-clients bench figures format install clean help

help:
	@echo "make demo        replay a coding agent's session on a small model, with and without the cache (4 minutes)"
	@echo "make demo-short  the first requests of it"
	@echo "make test        format, lint, types, layers, tests"
	@echo "make slow        the proofs on real models"
	@echo "make test-clients  real coding agents, from their registries, against the server (20 minutes)"
	@echo "make bench       measure, and compare with llama.cpp's own server"
	@echo "make figures     the README's pictures and table from docs/figures/results.json; BENCH=1 measures it first"
	@echo "make format      format the code and fix what can be fixed"
	@echo "make clean       remove .venv and caches of this tree (the built libllama stays)"

demo:
	@$(PYTHON) scripts/install.py demo
	@$(BIN)/kvstet demo

demo-short:
	@$(PYTHON) scripts/install.py demo
	@$(BIN)/kvstet demo --short

install:
	@$(PYTHON) scripts/install.py demo dev

test: install
	@$(STEP) "format" $(BIN)/ruff format --check .
	@$(STEP) "lint" $(BIN)/ruff check .
	@$(STEP) "types" $(BIN)/pyright
	@$(STEP) "layers" $(BIN)/lint-imports
	@$(STEP) "tests" $(BIN)/pytest -m "not slow"

slow:
	@$(PYTHON) scripts/install.py demo dev slow
	@$(STEP) "slow tests" $(BIN)/pytest -m "slow and not clients"

test-clients:
	@$(PYTHON) scripts/install.py demo dev slow
	@$(STEP) "clients" $(BIN)/pytest -m clients tests/clients

bench:
	@$(PYTHON) scripts/install.py bench dev
	@$(BIN)/kvstet bench
	@$(BIN)/python bench/plan.py
	@$(BIN)/python bench/explain.py
	@$(BIN)/python bench/foretold.py
	@$(BIN)/python bench/rules.py
	@$(BIN)/python bench/gateway.py
	@$(BIN)/python bench/reuse.py
	@$(BIN)/python bench/restart.py
	@$(BIN)/python bench/saving.py

figures:
	@$(PYTHON) scripts/install.py bench dev
	@mkdir -p docs/figures bench-results
	@$(if $(BENCH),$(BIN)/kvstet bench --json docs/figures/results.json -o bench-results/kvstet-bench.html)
	@$(BIN)/python scripts/figures.py

format: install
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
