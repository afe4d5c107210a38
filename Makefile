# `make` alone lists the targets.

PYTHON ?= python3
PORT ?= 8000
MFA_INSTANCE ?= instance
MFA_PUBLIC_URL ?= http://127.0.0.1:$(PORT)
export PORT MFA_INSTANCE MFA_PUBLIC_URL
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := .venv/bin
# Each file of tests in one process; its servers and databases are its own. Half of the time they wait: four processes
# keep two cores busy.
PARALLEL := -n 4 --dist=loadfile

# Two deployments of the suite's own are attacked side by side.
BOTH := -n 2 --dist=loadgroup

.DEFAULT_GOAL := help
.PHONY: help serve test faults check attack bench demo timing requirements clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

serve: .venv/serve  ## Run the service on 127.0.0.1:8000 (PORT and MFA_INSTANCE move it)
	@$(BIN)/python tools/greeting.py
	@$(BIN)/flask mfa init
	@$(BIN)/flask mfa upgrade
	@exec $(BIN)/gunicorn wsgi:app

test: .venv/test  ## Lint, types and the whole suite, with a real PostgreSQL and a real Redis
	@tools/programs.sh
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -q $(BOTH) tests/attacks -m attacks
	$(BIN)/pytest $(PARALLEL) -m "not attacks"

faults: .venv/test  ## Only what shows how it fails: database, Redis, workers, clocks, logs (a part of make test; needs nginx)
	@tools/programs.sh
	$(BIN)/pytest $(PARALLEL) -m faults

check: .venv/test lint  ## The quick part: lint, types, and tests that need no server
	$(BIN)/pytest -q $(PARALLEL) -m "not services"

.PHONY: lint
lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

attack: .venv/test  ## Attack a service of yours as others were (URL=…; ARGS="--i-own-this"), or, without URL, stacks of its own
	@$(BIN)/pytest -q --tb=no tests/attacks -m attacks --report $(if $(URL),attack-report.md --confcutdir=tests/attacks --target $(URL),docs/attack-report.md $(BOTH)) $(ARGS)

demo: .venv/serve  ## Walk the five steps against a running service, with your own phone (ARGS=--auto types the code)
	@$(BIN)/python tools/demo.py $(ARGS)

bench: .venv/bench  ## Measure every goal beside its floor, and write bench/REPORT.md (ARGS=--quick: some minutes; needs wrk and hey)
	@$(BIN)/python -m bench $(ARGS)

timing: .venv/serve  ## Ask whether the time of a refused login tells which names exist (needs raised limits: ARGS=--help)
	@$(BIN)/python tools/timing.py $(ARGS)

requirements: .venv/test  ## Pin and hash what make installs, anew
	# What is wanted with extras (coverage[toml]) has to be pinned with them, or the next release of it is in the way;
	# a list that constrains another one can't say so.
	cd requirements && for list in serve:--strip-extras test:--no-strip-extras bench:--no-strip-extras; do \
	  ../$(BIN)/pip-compile -q --upgrade --generate-hashes --allow-unsafe $${list#*:} --no-header --no-annotate \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	    -o $${list%:*}.txt $${list%:*}.in; done

clean:  ## Remove the virtual environment and caches; instance/ stays
	rm -rf .venv .node build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/serve: requirements/serve.txt setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q --require-hashes -r requirements/serve.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/bench: requirements/bench.txt .venv/test | .venv/bin/python
	$(BIN)/pip install -q --require-hashes -r requirements/bench.txt
	@touch $@

.venv/test: requirements/test.txt .venv/serve | .venv/bin/python
	$(BIN)/pip install -q --require-hashes -r requirements/test.txt
	@touch $@
