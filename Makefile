# make demo: set up, train a small model, say what to do next.   make test: set up, check, test.   Python 3.11, 3.12 or 3.13 is all that is needed.
# the newest that is there and runs (a shim of pyenv may stand for one that is not installed); PYTHON=… names another
PYTHON ?= $(firstword $(foreach version,3.13 3.12 3.11,$(shell python$(version) -c '' 2>/dev/null && echo python$(version))))
BIN := .venv/bin

.PHONY: demo test test-long test-slow test-services infra bench check clean

demo: .venv/.ready
	$(BIN)/raylway train cnn

test: .venv/.ready check
	$(BIN)/pytest

# ten seconds to a minute each: several trainings on Ray, a notebook, whole commands that are killed
test-long: .venv/.ready
	$(BIN)/pytest -m 'long and not slow and not services'

test-slow: .venv/.ready
	$(BIN)/pytest -m slow

# PostgreSQL is Debian's package `postgresql`; without it those tests that need it are skipped, and say so
test-services: .venv/.ready
	$(BIN)/pytest -m services -rs || [ $$? -eq 5 ]

# what checks manifests, images and scripts is 200 MB of schemas and programs, so it is installed when it is asked for
infra: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,infra]' --constraint constraints.txt
	$(BIN)/pytest tests/infra -rs

bench: .venv/.ready
	$(BIN)/python -m tests.benchmarks

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and by its exact version: a looser one would bring gigabytes of CUDA to a machine without a GPU
.venv/.ready: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'no Python 3.11, 3.12 or 3.13 on the path; name one with PYTHON=…'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 --constraint constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv runs
