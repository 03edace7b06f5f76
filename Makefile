# make demo: a first picture.  make test: everything that CI checks.  Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
FOLDERS := diffsolve problems solvers validation
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test lint pytest lowest mutants fuzz bench clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	@mkdir -p out
	$(BIN)/diffsolve sample "red apple" --solver heun --schedule karras -n 20 --seed 0 --batch 4 -o out/demo.png
	@echo "The picture: $(CURDIR)/out/demo.png"

test: .venv/installed-dev  # mypy takes a core alone: meanwhile the other one tests
	$(MAKE) -j 2 lint pytest

pytest: .venv/installed-dev
	$(BIN)/pytest -m "slow or not slow" -n 2

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy $(FOLDERS)

lowest: .venv/installed-dev
	.ci/lowest

mutants: .venv/installed-dev
	$(BIN)/python tests/mutants.py

fuzz: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

bench: .venv/installed-dev
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv .venv-lowest .mutants .fuzz build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# The editable install sees every later edit, so only a change of the requirements installs again.
.venv/installed: $(INPUTS) | .venv/bin/pip
	$(BIN)/pip install --prefer-binary -c constraints.txt -e .
	@touch $@

.venv/installed-dev: $(INPUTS) | .venv/bin/pip
	$(BIN)/pip install --prefer-binary -c constraints.txt -e ".[dev]"
	@touch .venv/installed $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	  "diffsolve needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
