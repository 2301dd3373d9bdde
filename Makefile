# Needs only make and Python 3.11 or newer. Everything is installed in a virtual environment of its own.
#
#   make demo       install the package with pandas, matplotlib and Jinja2, run examples/plot_quickstart.py
#   make test       install the test tools, run the tests and doctests   (make test PYTEST_ARGS="-x -k batches")
#   make lint       ruff (rules and format), numpydoc (docstrings)
#   make types      mypy
#   make examples   run every examples/plot_*.py
#   make docs       build the documentation in docs/_build/html
#   make clean      remove the environment and whatever was built

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
SPHINXOPTS ?= -W --keep-going
# Without a window, also where there is a display: MPLBACKEND=TkAgg make demo shows the plots.
MPLBACKEND ?= Agg
export MPLBACKEND

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
METADATA := setup.cfg pyproject.toml constraints.txt

.PHONY: help demo test lint types examples docs clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/plot_quickstart.py

# One process a core, of one thread each: the tests' matrices are small.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m numpydoc lint $$(find fimoda -name '*.py' | sort)

types: $(VENV)/.installed-test
	$(BIN)/python -m mypy

examples: $(VENV)/.installed-demo
	@set -e; for example in examples/plot_*.py; do \
		echo "== $$example"; \
		$(BIN)/python "$$example"; \
	done

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx $(SPHINXOPTS) docs docs/_build/html

# One stamp for each set of extras: a second run installs nothing unless the metadata or the pins have changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fimoda needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.created $(METADATA)
	$(INSTALL) -e '.[plot,report]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(METADATA)
	$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.created $(METADATA)
	$(INSTALL) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf docs/_build docs/auto_examples docs/generated docs/sg_execution_times.rst
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
