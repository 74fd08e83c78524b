# `make run` trains the default configuration, `make test` runs every test; both make their own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.PHONY: run test coverage test-fast lint format docs docs-check install clean
run: $(READY)
	$(BIN)/bitsback train configs/digits.yaml

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) tests bitsback --doctest-modules $(COVERAGE)

coverage: COVERAGE := --cov --cov-report=
coverage: test
	$(BIN)/python scripts/check_coverage.py

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" tests

docs-check: $(READY)
	$(BIN)/python -m pytest tests/test_readme.py tests/test_configs.py bitsback --doctest-modules

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/_build docs/reference docs/notebooks docs/figures
