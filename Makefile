# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# A process a core, which takes whole files of tests: fixtures of a file are made once.
PYTEST_ARGS := -q --numprocesses logical --maxprocesses 4 --dist loadfile
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
# Empty where download.pytorch.org cannot be reached: the package index has torch with CUDA, some gigabytes.
LOWEST_TORCH ?= --torch-backend cpu

.PHONY: site test-ray test-lowest demo test hostile check bench docs clean

demo: $(VENV)/.installed ## walk the whole product on generated data
	$(BIN)/sda-features demo

test: $(VENV)/.installed ## all tests
	$(PYTEST)

hostile: $(VENV)/.installed ## hostile inputs and faults alone; the last lines count them
	$(PYTEST) -m "hostile or fault"

test-ray: $(VENV)/.installed ## the tests of --engine ray, with its extra installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/python -m pytest -q tests/test_ray_engine.py

test-lowest: ## the lowest versions that pyproject.toml claims, in an environment of their own
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct $(LOWEST_TORCH) --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

check: $(VENV)/.installed ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed ## every benchmark, quick sizes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	for script in $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script --quick || exit 1; done

docs: $(VENV)/.installed ## write docs/cli.md from the commands' own help
	$(BIN)/python docs/make_cli.py

site: $(VENV)/.installed ## the documentation as a site in build/site
	$(BIN)/python -m pip install --quiet 'zensical>=0.0.11,<0.2'
	$(BIN)/zensical build --clean

# torch comes first and alone: its constraint selects a build without CUDA packages where one is offered.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info sda_features.egg-info .pytest_cache .mypy_cache .ruff_cache demo-output
