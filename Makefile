# make book [PRESET=lite|paper]         the chapters run, the book rendered to _build/html
# make test                             lint, tests, every chapter, the book with warnings as errors
# make lab | bench | lock | clean       JupyterLab · speed against peers · remake the lock · tidy up

PYTHON ?= python3
PRESET ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-bench
WORKERS := $(shell getconf _NPROCESSORS_ONLN)
SMOKE := $(CURDIR)/_build/smoke
SMOKED := $(patsubst book/%.ipynb,smoke-%,$(shell grep -l 'preset: str = ."read' book/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help install book test pages tests compared $(SMOKED) lint lab bench lock clean

help:
	@sed -n 's/^# //p;/^$$/q' Makefile

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": say make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the exact versions of requirements.lock into $(VENV) (about two minutes)"
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

book: $(INSTALLED)
	@$(BIN)/nuctut book $(if $(PRESET),--preset $(PRESET))

# The book first: its chapters come one after the other, which takes longest, and the tests make way
# for it. Whatever then has a core free is done beside what is left.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line pages tests compared $(SMOKED)

# One thread each: those of several processes would wait for each other without end.
pages tests compared $(SMOKED): export OMP_NUM_THREADS = 1
pages: $(INSTALLED)
	$(BIN)/nuctut book
	$(BIN)/python -m pytest -m built tests/test_project.py

tests: $(INSTALLED)
	nice -n 5 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxschedchunk 1 -m "not built"

# Chapters that hold outputs are compared with them.
compared: $(INSTALLED)
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg $(shell grep -l output_type book/*.ipynb)

# Chapters that train nothing as they stand do so under smoke, each as where no data lie, since the
# book has run it with those there are; and in a folder apart, since new records under `runs/` would
# make the book run it again.
$(SMOKED): export NUCTUT_DATA = $(SMOKE)/data
$(SMOKED): export NUCTUT_RUNS = $(SMOKE)/runs
$(SMOKED): smoke-%: $(INSTALLED)
	$(BIN)/nuctut run $* -p preset=smoke

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lab: $(INSTALLED)
	$(BIN)/jupyter lab book

# The peers want versions of their own, so they get an environment of their own.
bench: $(PEERS)/.installed
	@for script in bench/*.py; do echo "$$script"; $(PEERS)/bin/python $$script || exit 1; done

$(PEERS)/.installed: $(INSTALLED)
	@echo "Installing the peers into $(PEERS)"
	@$(BIN)/python -m venv $(PEERS)
	@grep -E '^torch(vision)?==' requirements.lock > $(PEERS)/constraints.txt
	@$(PEERS)/bin/python -m pip install --quiet --constraint $(PEERS)/constraints.txt --editable '.[bench]'
	@touch $@

# torch and torchvision must come from the same build; left free, the two can be resolved apart.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet uv
	printf 'torch==2.12.1\ntorchvision==0.27.1\n' | $(VENV)-lock/bin/uv pip compile pyproject.toml \
		--extra book --extra export --extra dev --constraints - --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock
	rm -r $(VENV)-lock

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
