# A Debian machine with python3 (3.11 or newer), python3-venv, make and git is enough:
#
#     make compare      the library and a real Envoy side by side
#     make test         the whole suite
#
# Every target first sets up what it needs; nothing is installed outside this directory.
#
#     PYTHON=python3.12   the interpreter of a new virtual environment (default: the newest of 3.11-3.13)
#     VENV=.venv-3.12     where that environment is (default: .venv)
#     ARGS="..."          further words for the command of the target
#     SECONDS=60          how long to fuzz (default: an hour)
#     BENCH=overhead      which benchmark (default: overhead and http)

VENV ?= .venv
ARGS ?=
BENCH ?= overhead http

BIN := $(VENV)/bin
# Newest first. Each candidate is run: a name on PATH may be a shim of a version that is not there,
# and Debian's python3 has no ensurepip before python3-venv is installed.
USABLE := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
CANDIDATES := python3.13 python3.12 python3.11 python3
PYTHON ?= $(shell for each in $(CANDIDATES); do $$each $(USABLE) 2>/dev/null && echo $$each && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup compare test test-all lint types imports ci soak bench fuzz docs docs-serve pictures reference protos constraints clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(VENV)/.installed  ## the virtual environment, from constraints.txt

compare: setup  ## run `resilmesh compare`
	@$(BIN)/resilmesh compare $(ARGS)

test: setup  ## run every test
	@$(BIN)/python -m pytest $(ARGS)

test-all:  ## run every test on each of Python 3.11-3.13 that is here
	@tried=; for version in 3.11 3.12 3.13; do \
		python$$version $(USABLE) 2>/dev/null || { echo "python$$version is not on PATH: not tested"; continue; }; \
		echo "== Python $$version"; tried=$$version; \
		$(MAKE) test PYTHON=python$$version VENV=.venv-$$version; \
	done; test -n "$$tried"

lint: setup  ## ruff
	@$(BIN)/ruff check $(ARGS)

types: setup  ## mypy --strict
	@$(BIN)/mypy $(ARGS)

imports: setup  ## the import contract: imports only go down
	@$(BIN)/lint-imports $(ARGS)

ci: lint types imports test  ## what .ci/run runs

soak: setup  ## a million calls, disturbed in every way, after which nothing may be left
	@$(BIN)/python -m benchmarks.soak $(ARGS)

bench: benchmarks/.venv/.installed  ## the cost of a guarded call and of a request, beside other libraries
	@for each in $(BENCH); do benchmarks/.venv/bin/python -m benchmarks.$$each $(ARGS); done

docs: setup  ## the documentation as a site, in build/docs/site; fails on a warning
	@$(BIN)/python -m tests.docs.build_site build/docs

docs-serve: setup  ## the same on http://127.0.0.1:8000; `make docs` beside it brings your changes
	@$(BIN)/python -m tests.docs.build_site build/docs --serve

pictures: setup  ## draw docs/pictures anew, from the code's own tables
	@$(BIN)/python -m tests.docs.pictures

reference: setup  ## make the pages of docs/reference anew, from the code
	@$(BIN)/resilmesh schema --reference > docs/reference/policy.md
	@$(BIN)/resilmesh schema --diagnostics > docs/reference/diagnostics.md
	@$(BIN)/python -m tests.docs.reference

protos: setup  ## compile the protos of the tests
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. tests/grpc/protos/*.proto

# SECONDS is a variable of the shell's own, so it counts only when it was given to make.
fuzz: build/fuzz-venv/.installed  ## throw inputs at the policy, the matcher and the transport (SECONDS=3600)
	@build/fuzz-venv/bin/python -m tests.fuzz --seconds $(if $(filter command line,$(origin SECONDS)),$(SECONDS),3600) $(ARGS)

constraints: .venv-uv/bin/uv  ## pin every package anew (ARGS=--upgrade for newer versions)
	@$< pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
		--python-version 3.11 --all-extras --group dev pyproject.toml --output-file constraints.txt $(ARGS)

clean:  ## remove everything that make made
	@rm -rf .venv .venv-* benchmarks/.venv build dist
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------ virtual environments

# -qq: only errors. pip warns once a package about each local index of its configuration that lacks it.
# The build backend is pinned too, so no build isolation: nothing comes from outside constraints.txt.
$(VENV)/.installed: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing constraints.txt into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

BENCHMARKS := benchmarks/overhead/requirements.txt benchmarks/http/requirements.txt benchmarks/grpc/requirements.txt benchmarks/identity/requirements.txt benchmarks/telemetry/requirements.txt
benchmarks/.venv/.installed: $(BENCHMARKS) pyproject.toml | benchmarks/.venv/bin/python
	@echo "Installing the libraries that we compare ourselves with into benchmarks/.venv ..."
	@benchmarks/.venv/bin/python -m pip install -qq $(addprefix -r ,$(BENCHMARKS)) --editable .
	@touch $@

build/fuzz-venv/.installed: tests/fuzz/requirements.txt pyproject.toml | build/fuzz-venv/bin/python
	@echo "Installing atheris into build/fuzz-venv ..."
	@build/fuzz-venv/bin/python -m pip install -qq -r tests/fuzz/requirements.txt --editable '.[httpx]' 'httpx[http2]'
	@touch $@

.venv-uv/bin/uv: | .venv-uv/bin/python
	@.venv-uv/bin/python -m pip install -qq uv

%/bin/python:
	@$(if $(PYTHON),,$(no_python))
	@$(PYTHON) $(USABLE) || { echo "$(PYTHON) cannot be used: Python 3.11 or newer with venv and ensurepip is needed" >&2; exit 1; }
	@echo "Creating $* with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv --clear $*

define no_python
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	echo "python3 has no ensurepip. On Debian or Ubuntu:  apt-get install python3-venv" >&2; \
else \
	echo "Python 3.11 or newer is needed. On Debian or Ubuntu:  apt-get install python3 python3-venv" >&2; \
fi; exit 1
endef
