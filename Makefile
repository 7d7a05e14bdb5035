# `make` or `make help` lists the targets. Everything runs in .venv, made when it is missing, with packages of the
# versions and hashes in requirements/: installed by uv, or by pip where uv does not work.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip
PYTEST := $(BIN)/python -m pytest
# Many tests start processes, each of which would compile fedkd anew.
test: export PYTHONDONTWRITEBYTECODE :=
# Compiled once, as by pip: where PYTHONDONTWRITEBYTECODE is set, every start would compile PyTorch anew.
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

# $(call install,FILE,OPTIONS) installs what requirements/FILE.txt pins.
ifndef UV_TORCH_BACKEND
define install
$(UV) --require-hashes --no-deps --requirement requirements/$1.txt || { \
  echo 'uv failed; pip installs instead, which takes longer'; \
  $(PIP) install --quiet --require-hashes --no-deps --requirement requirements/$1.txt; }
endef
else
# PyTorch's own builds: the same versions as on PyPI, but other hashes and other dependencies.
install = $(UV) --no-verify-hashes --requirement pyproject.toml --group build $2 \
  --constraint requirements/$1.txt
endif

# One version of a package for every Python and system, so that results depend on neither.
COMPILE := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --fork-strategy fewest --generate-hashes $(UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev lock wheel wheelhouse demo test test-ray test-browser test-hosts test-notebooks test-docs test-slow schema docs lint format types borders check tune bench bench-scale paper bundle clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make .venv and install fedkd into it, with what it needs to run

$(STAMP): pyproject.toml requirements/installer.txt requirements/runtime.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	-$(PIP) install --quiet --require-hashes --requirement requirements/installer.txt
	$(call install,runtime)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

setup-dev: $(STAMP_DEV) ## also install what tests, checks and documentation need

$(STAMP_DEV): $(STAMP) requirements/dev.txt
	$(call install,dev,--extra dev)
	touch $@

lock: $(STAMP) ## write requirements/ for pyproject.toml; UPGRADE=--upgrade takes the newest versions
	$(COMPILE) pyproject.toml --extra dev --group build --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --group build --constraint requirements/dev.txt \
	  --output-file requirements/runtime.txt
	$(COMPILE) --group installer --output-file requirements/installer.txt

wheel: $(STAMP) ## build dist/fedkd-VERSION-py3-none-any.whl
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

wheelhouse: wheel ## fill dist/wheelhouse with all packages, for hosts without internet
	$(PIP) download --quiet --require-hashes --no-deps --dest dist/wheelhouse --requirement requirements/runtime.txt
	cp dist/fedkd-*.whl requirements/runtime.txt dist/wheelhouse

demo: $(STAMP) ## compare KD consolidation with plain FedAvg on real data (about two minutes)
	$(BIN)/fedkd compare experiments/quickstart.yaml

test: $(STAMP_DEV) ## run the default tests, one more at a time than there are cores
	$(PYTEST) -n auto --dist worksteal

test-ray: $(STAMP_DEV) ## run the tests on Flower's Simulation Runtime
	$(PYTEST) -m ray -n 2 --dist loadfile tests/e2e

test-hosts: $(STAMP_DEV) ## run the tests with SuperLink and SuperNodes, also on hosts of their own; those need root
	$(PYTEST) -m '(hosts or deploy) and not slow' -n 2 --dist loadfile tests/e2e

test-notebooks: $(STAMP_DEV) ## execute the two notebooks
	$(PYTEST) -m slow -n 2 tests/e2e/test_notebooks.py

test-docs: $(STAMP_DEV) ## run what the documents show: commands, code, notebooks, trackers (some minutes)
	$(PYTEST) -m slow tests/e2e/test_docs.py tests/e2e/test_notebooks.py tests/studies/test_trackers.py

test-slow: $(STAMP_DEV) ## run all slow tests: those of test-docs, and many kills
	$(PYTEST) -m slow

schema: $(STAMP) ## write the JSON schema of study files, for editors
	$(BIN)/fedkd schema > experiments/study.schema.json

docs: $(STAMP_DEV) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-browser: $(STAMP_DEV) ## open the report in headless Chromium; screenshots go to test-artefacts/
	$(PYTEST) -m browser -n 2 --dist worksteal tests/e2e

lint: $(STAMP_DEV) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP_DEV) ## let ruff rewrite
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP_DEV) ## mypy, strict
	$(BIN)/mypy

borders: $(STAMP_DEV) ## import-linter: who may import whom
	$(BIN)/lint-imports

check: lint types borders test ## all of the above

tune: $(STAMP) ## tune the arms of the federations of digits without a file in experiments/tuned (half an hour each; resumes)
	$(BIN)/python -m experiments.paper.tuned

bench: $(STAMP_DEV) ## measure fedkd against other ways to do the same work (three hours, on a quiet machine)
	$(BIN)/python -m experiments.bench

bench-scale: $(STAMP_DEV) ## measure how time and memory grow (about five minutes)
	$(BIN)/python -m experiments.bench.scale

paper: $(STAMP) ## run the studies behind the claims as far as not recorded; rebuild RESULTS.md
	$(BIN)/python -m experiments.paper

bundle: $(STAMP) ## build the Flower App Bundle
	$(BIN)/flwr build

clean: ## remove .venv and all that tools left behind; results in runs/ stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.fab
