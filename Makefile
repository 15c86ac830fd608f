# Everything a person or CI does with this repository. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check fix fuzz exchange-table criteria-table bench wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# constraints.txt pins what is tested (PyTorch as the CPU build); pyproject.toml keeps wide ranges.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## find a ticket in PyTorch on real digits and carry it to Keras (about a minute)
	$(BIN)/ltcore demo

# A file of tests stays in one process: some share what is dear to make.
test: demo check  ## the demo, lint, types, import rules, and the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP)  ## lint, format, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(STAMP)  ## format, and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(STAMP)  ## read 200,000 mutated tickets; FUZZ="--count 1000000 --seed 7" for others
	$(BIN)/python tests/lib/fuzz_tickets.py --count 200000 $(FUZZ)

exchange-table: $(STAMP)  ## measure what docs/exchange.md says of carried tickets, and write it there
	rm -f exchange-rows.json
	for engine in tensorflow torch jax; do KERAS_BACKEND=$$engine LTCORE_EXCHANGE_TABLE=exchange-rows.json \
	  $(BIN)/python -m pytest -q tests/test_kinds.py tests/test_architectures.py || exit 1; done
	$(BIN)/python tests/lib/exchange_table.py exchange-rows.json docs/exchange.md
	rm exchange-rows.json

criteria-table: $(STAMP)  ## measure what docs/criteria.md says of criteria, and write it there
	rm -f criteria-rows.json
	for engine in tensorflow torch jax; do KERAS_BACKEND=$$engine LTCORE_CRITERIA_TABLE=criteria-rows.json \
	  $(BIN)/python -m pytest -q tests/test_criteria_agreement.py || exit 1; done
	$(BIN)/python tests/lib/criteria_table.py criteria-rows.json docs/criteria.md
	rm criteria-rows.json

bench: $(STAMP)  ## speed and memory beside peers and limits (about ten minutes)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/ticket_size.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/criteria.py
	$(BIN)/python benchmarks/holding.py

wheel: $(STAMP)  ## build the wheel and the sdist into dist/
	$(BIN)/python -m build

clean:  ## remove the environment and everything built
	rm -rf $(VENV) dist build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
