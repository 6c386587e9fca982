# `make` explains itself. Everything here needs Python 3.11 or newer, called python3 or by its version.
# One line per target: what `## ` says is the help.

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup check test test-all rare conformance fuzz torture bench bench-peers demo study zoo docs build clean

# The first Python on the path that is new enough.
PYTHON = $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
PAGES := README.md CONTRIBUTING.md $(wildcard docs/*.md)

# The suite runs in WORKERS processes, each file in one of them, so that what a file prepares is prepared once; 0 is this one alone, for a debugger. One thread each: small tensors gain
# nothing from more, and together they would fight for the cores.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

EXAMPLES ?= 5000
KILLS ?= 5000

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## prepare .venv with everything (two minutes the first time, nothing when it is ready)

# The mark is the last thing made and goes first: a setup that was cut short starts again from nothing.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "optstate needs Python 3.11 or newer; none was found on the path" >&2; exit 2; }
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(RUN) -m pip install --upgrade "pip>=25.1"
	$(RUN) -m pip install --constraint constraints.txt --editable ".[torch]" --group dev
	touch $@

check: $(READY) ## format, lint and types
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy

test: check ## check, then run the tests, fast ones first
	$(PYTEST)

test-all: check rare ## check, then run the tests with the large matrices whole, and those of the rarer writers
	$(PYTEST) --whole

rare: $(READY) ## install the rarer writers of checkpoints, as far as they install here
	$(RUN) tools/rare.py

conformance: rare ## try every optimizer that installs here, beside the peers, and write the table (ten minutes)
	OMP_NUM_THREADS=1 $(RUN) -m tests.conformance

fuzz: $(READY) ## open files that chance makes, EXAMPLES of each kind (a minute for 1000)
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz --examples $(EXAMPLES)

torture: $(READY) ## kill saves and training runs KILLS times, and see that nothing is lost (a minute for 1000)
	OMP_NUM_THREADS=1 $(RUN) -m tests.torture --kills $(KILLS)

bench: $(READY) ## measure against the peers and the limits of this machine
	$(RUN) -m bench

bench-peers: $(READY) ## measure what others take to save the same, which takes minutes
	$(RUN) -m bench --only peers

demo: $(READY) ## train, kill, resume, and prove that the resumed run is the uninterrupted one
	$(RUN) -m demo

study: $(READY) ## measure what lost optimizer state costs and what rebuilding gives back (ten minutes or more)
	OMP_NUM_THREADS=1 $(RUN) -m study

zoo: $(READY) ## show each known fault: what the library says, and what doctor says
	OMP_NUM_THREADS=1 $(RUN) -m zoo

docs: $(READY) ## write the page of each code and the plots, run the other pages and put their real output in place
	$(RUN) -m tools.codes
	$(RUN) -m tools.plots
	$(RUN) tools/pages.py --write $(PAGES)

build: $(READY) ## make wheel and source distribution in dist/
	$(RUN) -m build --no-isolation

clean: ## remove what the other targets made, all but .venv
	rm -rf build dist demo-report.html demo-runs bench-results .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests tools demo study bench zoo -name __pycache__ -type d -exec rm -rf {} +
