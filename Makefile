# Sluicegate's commands. `make run` serves a real model on this machine, `make test` runs every test.
# Both install what they need into .venv; nothing is installed outside of it and ~/.cache/sluicegate.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p)),$(p))))
BIN := .venv/bin
# promtool and ansible-playbook are found there.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run demo-host test test-deploy test-clients test-webui lint types unit coverage mutants dashboards bench build wheel format clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

run: .venv/run.stamp  ## serve a real model here: engine and gateway, one question answered, until Ctrl-C
	@exec $(BIN)/sluicegate run

demo-host: .venv/dev.stamp  ## boot a Debian host, deploy everything on it and look at it, until Ctrl-C (root)
	@exec $(BIN)/python -m tests.deploy.demo

test: lint types build coverage test-deploy  ## install what the tests need and run all of them

test-deploy: .venv/tools.stamp  ## boot Debian hosts, run the playbooks on them and test the result (root)
	$(BIN)/pytest -m deploy

test-clients: .venv/dev.stamp  ## run real clients and benchmarks against the real engine (docs/clients.md; not a part of test)
	$(BIN)/pytest -m clients

test-webui: .venv/tools.stamp  ## Open WebUI on a booted host, used in Chromium (root, apt install chromium, 3 GB of downloads)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[webui]'
	$(BIN)/pytest -m webui

lint: .venv/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	cd ansible && ../$(BIN)/ansible-lint --offline
	$(BIN)/python ansible/generate.py --check
	shellcheck .ci/run .ci/packages tests/deploy/standins/*.sh
	$(BIN)/python -m prometheus.sluicegate_rules.build --check
	$(BIN)/python -m grafana.sluicegate_dashboards.build --check

types: .venv/dev.stamp
	$(BIN)/mypy

unit: .venv/tools.stamp  ## the fast tests only: no real engine, no booted host
	$(BIN)/pytest -m "not engine and not deploy and not clients and not webui"

coverage: .venv/tools.stamp
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not deploy and not clients and not webui"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# mutmut knows a package's modules by their names only under src: it gets a copy of the tree with daemon called so.
MUTANTS := build/mutants

mutants: .venv/tools.stamp  ## change the deciding modules in small ways and count what the tests notice (20 minutes)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[mutants]'
	rm -rf $(MUTANTS) && mkdir -p $(MUTANTS)
	git ls-files -z | xargs -0 cp --parents -pt $(MUTANTS)
	mv $(MUTANTS)/daemon $(MUTANTS)/src && ln -s src $(MUTANTS)/daemon
	cd $(MUTANTS) && $(CURDIR)/$(BIN)/mutmut run --max-children $$(nproc)
	cd $(MUTANTS) && $(CURDIR)/$(BIN)/mutmut results && $(CURDIR)/$(BIN)/mutmut export-cicd-stats && cat mutants/mutmut-cicd-stats.json

bench: .venv/dev.stamp  ## measure the gateway and its peers (PEERS=venv/bin with smg and vllm-router; nginx from PATH)
	$(BIN)/python -m tests.bench --plot docs/performance.svg --json build/bench.json $(if $(PEERS),--peer-bin $(PEERS))

dashboards: .venv/dev.stamp  ## rebuild the rules, the runbook's tables and the dashboards' JSON
	$(BIN)/python -m prometheus.sluicegate_rules.build
	$(BIN)/python -m grafana.sluicegate_dashboards.build

wheel: .venv/dev.stamp  ## build the gateway's wheel into dist, for the playbooks
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps -w dist .

build: .venv/dev.stamp  # the wheel must work away from the source tree
	rm -rf build/wheel build/away
	$(BIN)/pip wheel -q --no-deps -w build/wheel .
	! $(PYTHON) -m zipfile -l build/wheel/*.whl | grep sluicegate_run  # what is deployed has the daemon only
	$(PYTHON) -m venv build/away
	build/away/bin/pip install --disable-pip-version-check -q build/wheel/*.whl
	cd / && $(CURDIR)/build/away/bin/sluicegate --version
	cd / && $(CURDIR)/build/away/bin/sluicegate check --config /dev/null

format: .venv/dev.stamp  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built here (not the cache in ~/.cache/sluicegate)
	rm -rf .venv build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Sluicegate needs Python 3.11 or newer: install it (Debian 12: apt install python3 python3-venv)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sluicegate needs Python 3.11 or newer, and $(PYTHON) is older: set PYTHON to a newer one." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing the gateway into .venv (a minute the first time)"
	$(BIN)/pip install --disable-pip-version-check -q -e '.[run]'
	@touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@ .venv/run.stamp

.venv/tools.stamp: .ci/packages .venv/dev.stamp
	.ci/packages $(BIN)
	@touch $@
