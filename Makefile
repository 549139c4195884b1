# `make demo` goes from a fresh clone to a certified classifier; `make test` from a fresh clone to passed tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers on two cores; each test uses one thread.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test tests lint slow docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# The pip that comes with Python 3.11 resolves for minutes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	# Python compiles the modules that it imports; pip would compile all 17,000.
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev,docs]"
	touch $@

demo: export OMP_NUM_THREADS =
demo: setup
	env -u OMP_NUM_THREADS $(BIN)/python -m lightning_rs fit
	env -u OMP_NUM_THREADS $(BIN)/python -m lightning_rs report runs/certify/*.jsonl --out runs/report

# Linters and the site beside the tests: what runs on one core alone would leave the other one idle.
test: setup
	$(MAKE) --no-print-directory --jobs=2 tests lint docs

# Whoever is done takes over what the other has not begun; a module stays with one worker, and so do its fixtures.
tests: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow

docs: setup
	$(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
