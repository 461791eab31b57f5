# Every target makes what it needs first. The interpreter can be chosen: `make demo PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= demo,train,eval,space,test

.PHONY: help demo space listening-test test check lint golden benchmark bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       restores the example recording with the shipped weights, offline"
	@echo "make space      opens the page to restore recordings in the browser, on this machine"
	@echo "make listening-test STUDY=study.yaml  lets people rate restorations in the browser"
	@echo "make test       runs the whole test suite"
	@echo "make check      runs ruff, mypy and the fast tests"
	@echo "make lint       runs ruff and mypy"
	@echo "make golden     writes tests/golden.json anew, after a change of results that is wanted"
	@echo "make benchmark  renders the test set, restores it, and writes the tables and a page"
	@echo "make bench      measures speed and memory on this machine"
	@echo "make clean      removes the environment and what the targets wrote"

demo: $(VENV)/demo.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m spaces_app.demo

space: $(VENV)/space.installed
	$(BIN)/python -m spaces_app.app

# STUDY names the study's YAML; its folder, answers included, lies in build/.
listening-test: $(VENV)/space.installed
	@test -n "$(STUDY)" || { echo "name the study: make listening-test STUDY=study.yaml" >&2; exit 1; }
	@test -d build/study-$(basename $(notdir $(STUDY))) || \
		$(BIN)/python -m spaces_app.listening_test build --study $(STUDY) --out build/study-$(basename $(notdir $(STUDY)))
	$(BIN)/python -m spaces_app.listening_test serve --folder build/study-$(basename $(notdir $(STUDY)))

test: $(VENV)/all.installed
	$(BIN)/python -m pytest -m ""

check: lint
	$(BIN)/python -m pytest

lint: $(VENV)/all.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(VENV)/all.installed
	WRITE_GOLDEN=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/test_golden.py

# ACOUSTICS and VOICES name folders of rooms, audiences and voices, each with its index.json.
benchmark: $(VENV)/all.installed
	@test -n "$(ACOUSTICS)" -a -n "$(VOICES)" || { echo "name the folders: make benchmark ACOUSTICS=DIR VOICES=DIR" >&2; exit 1; }
	$(BIN)/python -m training.data.corpora
	$(BIN)/python -m training.evaluation.clips --split test --acoustics $(ACOUSTICS) --voices $(VOICES) --out data/benchmark/test
	$(BIN)/python -m training.evaluation.benchmark --clips data/benchmark/test --out build/benchmark/test --page

bench: $(VENV)/all.installed
	$(BIN)/python -m training.evaluation.bench

clean:
	rm -rf $(VENV) build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache

# The package is installed in place, so only a change of pyproject.toml calls for another installation.
$(VENV)/demo.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/space.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[space]"
	@touch $@

$(VENV)/all.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@ $(VENV)/demo.installed

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 or newer is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make an environment: install its venv module (Debian and Ubuntu: python3-venv)" >&2; exit 1; }
