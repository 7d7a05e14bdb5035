# `make` or `make help` lists the targets. Everything runs in .venv, made when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ray test-browser test-hosts test-notebooks test-docs test-slow schema docs lint format types borders check sweeps bench bench-scale paper bundle clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make .venv and install fedkd into it, once

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## compare KD consolidation with plain FedAvg on real data (about a minute)
	$(BIN)/fedkd compare experiments/quickstart.yaml

test: $(STAMP) ## run the default tests, as many at a time as there are cores
	$(PYTEST) -n auto --dist worksteal

test-ray: $(STAMP) ## run the tests on Flower's Simulation Runtime
	$(PYTEST) -m ray tests/e2e

test-hosts: $(STAMP) ## run the test on hosts of their own, in network namespaces; needs root
	$(PYTEST) -m 'hosts and not slow' tests/e2e

test-notebooks: $(STAMP) ## execute the two notebooks
	$(PYTEST) -m slow tests/e2e/test_notebooks.py

test-docs: $(STAMP) ## run what the documents show: commands, code, notebooks, trackers (some minutes)
	$(PYTEST) -m slow tests/e2e/test_docs.py tests/e2e/test_notebooks.py tests/studies/test_trackers.py

test-slow: $(STAMP) ## run all slow tests: those of test-docs, and many kills
	$(PYTEST) -m slow

schema: $(STAMP) ## write the JSON schema of study files, for editors
	$(BIN)/fedkd schema > experiments/study.schema.json

docs: $(STAMP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-browser: $(STAMP) ## open the report in headless Chromium; screenshots go to test-artefacts/
	$(PYTEST) -m browser -n auto --dist worksteal tests/e2e

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff rewrite
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

borders: $(STAMP) ## import-linter: who may import whom
	$(BIN)/lint-imports

check: lint types borders test ## all of the above

sweeps: $(STAMP) ## tune plain FedAvg for every study on validation data (about half an hour)
	for study in experiments/*.yaml experiments/five-partitions/*.yaml; do \
	  $(BIN)/python -m experiments.sweep $$study || exit 1; done

bench: $(STAMP) ## measure fedkd against other ways to do the same work (about half an hour, on a quiet machine)
	$(BIN)/python -m experiments.bench

bench-scale: $(STAMP) ## measure how time and memory grow (about five minutes)
	$(BIN)/python -m experiments.bench.scale

paper: $(STAMP) ## run the studies behind the claims as far as not recorded; rebuild RESULTS.md
	$(BIN)/python -m experiments.paper

bundle: $(STAMP) ## build the Flower App Bundle
	$(BIN)/flwr build

clean: ## remove .venv and all that tools left behind; results in runs/ stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.fab
