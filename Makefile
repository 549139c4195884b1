# `make demo` goes from a fresh clone to a certified classifier; `make test` from a fresh clone to passed tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers on two cores; each test uses one thread.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test lint slow docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# The pip that comes with Python 3.11 resolves for minutes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: export OMP_NUM_THREADS =
demo: setup
	env -u OMP_NUM_THREADS $(BIN)/python -m lightning_rs fit
	env -u OMP_NUM_THREADS $(BIN)/python -m lightning_rs report runs/certify/*.jsonl --out runs/report

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -q --doctest-modules lightning_rs
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

slow: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow

docs: setup
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
