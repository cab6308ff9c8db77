# Everything happens in .venv, which the first target to need it creates. Repeating a target installs nothing
# unless pyproject.toml or constraints.txt has changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The interpreter that creates .venv; unset, the first of these that is at least 3.11.
PYTHON ?=
CANDIDATES := $(PYTHON) python3.11 python3 python3.12 python3.13 python

VENV_PYTHON := .venv/bin/python
PIP_INSTALL := $(VENV_PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt
RUNTIME := .venv/.installed-runtime
DEV := .venv/.installed-dev

DEMO_FLAGS ?= --data unicode --trials 12 --seeds 2 --grace 1 --set model.dim=64 --set train.batch_size=512 --set train.max_epochs=5 --set train.precision=auto --budget 270s
RECOMMEND_FLAGS ?= --task recommend --data codepages --trials 10 --seeds 2 --grace 3 --set model.widths=[64,32] --set train.lr=0.005 --set train.max_epochs=16 --set train.patience=6 --budget 200s
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
FUZZ_FLAGS ?=

.PHONY: help demo demo-recommend test slow test-cluster bench fuzz lint types docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(RUNTIME)  ## install, then search the bundled data set (a few minutes on two cores)
	$(VENV_PYTHON) tune/search.py $(DEMO_FLAGS)

demo-recommend: $(RUNTIME)  ## install, then search a recommender on the bundled code pages (under four minutes)
	$(VENV_PYTHON) tune/search.py $(RECOMMEND_FLAGS)

test: $(DEV)  ## install, then run the tests
	$(VENV_PYTHON) -m pytest $(PYTEST_FLAGS)

slow: $(DEV)  ## every test, those that `make test` leaves out too, one after another
	$(VENV_PYTHON) -m pytest -n 0 -m "slow or not slow" --hypothesis-profile=nightly $(PYTEST_FLAGS)

test-cluster: $(DEV)  ## ray up, ray submit and lost hosts, on several hosts within this machine (root; 10 to 15 minutes)
	IMF_MUST_RUN=1 $(VENV_PYTHON) -m pytest -n 0 -m slow tests/cluster/test_hosts.py -rs $(PYTEST_FLAGS)

bench: $(DEV)  ## measure speed and memory anew (about an hour); writes results/benchmarks.md
	$(VENV_PYTHON) -m pytest -n 0 -m "slow or not slow" tests/benchmarks/test_speed.py $(PYTEST_FLAGS)
	$(VENV_PYTHON) -m benchmarks.run_speed $(BENCH_FLAGS)

fuzz: $(DEV)  ## 10,000 hostile inputs through every reader (minutes); writes results/fuzz.md
	$(VENV_PYTHON) -m benchmarks.fuzz $(FUZZ_FLAGS)

lint: $(DEV)  ## ruff
	$(VENV_PYTHON) -m ruff check .

types: $(DEV)  ## mypy
	$(VENV_PYTHON) -m mypy

docs: $(DEV)  ## the pages of docs/ as a site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict --quiet

clean:  ## remove .venv, caches and build leftovers; results stay
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted creation leaves a .venv without a working pip: it is made anew.
.venv/.created:
	@if .venv/bin/python -m pip --version >/dev/null 2>&1; then touch $@; exit 0; fi; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "creating .venv with $$candidate ($$("$$candidate" --version))"; \
	    "$$candidate" -m venv --clear .venv; touch $@; exit 0; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv was found. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1

$(RUNTIME): pyproject.toml constraints.txt | .venv/.created
	@echo "installing the product into .venv (some minutes the first time)"
	@$(PIP_INSTALL) -e .
	@touch $@

# The development install contains the runtime one, so it marks both.
$(DEV): pyproject.toml constraints.txt | .venv/.created
	@echo "installing the product and its tools into .venv (some minutes the first time)"
	@$(PIP_INSTALL) -e '.[dev,demo-encoders]'
	@touch $(RUNTIME) $@
