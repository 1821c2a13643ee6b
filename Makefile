# make book [PRESET=lite|paper]         the chapters run, the book rendered to _build/html
# make test                             lint, tests, every chapter, the book with warnings as errors
# make lab | bench | lock | clean       JupyterLab · speed against peers · remake the lock · tidy up

PYTHON ?= python3
PRESET ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-bench
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.DEFAULT_GOAL := help
.PHONY: help install book test tests chapters lint lab bench lock clean

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

test: lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line tests chapters

# As many processes as there are cores, and one more, since tests that start processes wait for
# them. One thread each: those of several processes would wait for each other without end.
tests chapters: export OMP_NUM_THREADS = 1
tests: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxschedchunk 1

# Chapters that hold outputs are compared with them; those that train nothing as they stand do so under
# smoke; and all of them are run for the book.
chapters: $(INSTALLED)
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg $(shell grep -l output_type book/*.ipynb)
	for chapter in $(patsubst book/%.ipynb,%,$(shell grep -l 'preset: str = ."read' book/*.ipynb)); do \
		$(BIN)/nuctut run $$chapter -p preset=smoke || exit 1; done
	$(BIN)/nuctut book

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
