# Needs Python >= 3.11 and make; the rest is installed into .venv by the first target that wants it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/toy_drums

.PHONY: toy demo test install lint clean

toy: $(VENV)/.installed  ## train the toy drum world, evaluate it, write WORKDIR/report.html
	$(BIN)/python -m melodjinn_jax.train --config experiments/toy_drums.py --workdir $(WORKDIR)
	@echo "open $(WORKDIR)/report.html"

demo: $(VENV)/.installed  ## play the toy drum world in the browser; trains it first if need be
	test -f $(WORKDIR)/report.html || $(MAKE) toy
	$(BIN)/python -m melodjinn_jax.play --workdir $(WORKDIR)

# One worker takes all tests of a file, or each would build what they share: a trained toy, say.
test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed  ## the .venv with everything that training and the tests need

$(VENV)/.installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:  ## remove the .venv and what tests left; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
