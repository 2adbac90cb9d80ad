# Two commands on a bare machine with Python 3.11 to 3.13; each does its own set-up in .venv.
#   make demo    the whole walk on a phantom
#   make test    the tests
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(READY)
	$(VENV)/bin/segsweep demo demo

test: $(DEV_READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(DEV_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(DEV_READY): $(READY)
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo dist build
