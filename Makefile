# `make repro` and `make test` are all a fresh machine needs; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
ACTIVE := source $(BIN)/activate &&
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help repro report estimate benchmark ablations test lint ui release lock \
  model-named version-named
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

repro: $(VENV)/installed  ## run the whole pipeline: data, models, results
	$(ACTIVE) python -m stages.tools check
	$(ACTIVE) dvc repro

estimate: $(VENV)/installed  ## what a run would ask of chat models, and its cost
	$(ACTIVE) python -m stages.tools check
	$(ACTIVE) dvc repro --quiet seed && python -m stages.tools estimate

benchmark: model-named $(VENV)/installed  ## measure MODEL (folder, hub id, name at BASE_URL)
	$(ACTIVE) python -m stages.tools benchmark "$(MODEL)" \
	  $(if $(BASE_URL),--base-url "$(BASE_URL)") $(if $(LIMIT),--limit "$(LIMIT)") \
	  $(if $(OUT),--out "$(OUT)") $(ARGS)

ablations: $(VENV)/installed  ## run the paper's ablations as experiments (an hour); ARGS=--quick
	$(ACTIVE) python -m stages.tools ablations $(ARGS)

report: $(VENV)/installed  ## rebuild the report page and the README's figures
	@test -f data/eval/responses.parquet || \
	  { echo "error: there are no results yet; run \`make repro\` first" >&2; exit 1; }
	$(ACTIVE) dvc repro --single-item report

test: $(VENV)/installed  ## check lint and types, and run the tests
	$(ACTIVE) ruff check --quiet && ruff format --check --quiet && mypy
	$(ACTIVE) python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed  ## fix what ruff can, check the types
	$(ACTIVE) ruff format; ruff check --fix && mypy

ui: $(VENV)/installed  ## look at the training runs in MLflow (http://127.0.0.1:5000)
	$(ACTIVE) python -m stages.tools ui

release: version-named $(VENV)/installed  ## release data/librachemqa as VERSION=v1.0.0
	$(ACTIVE) python -m stages.tools release make "$(VERSION)"

# What a command needs is asked for before anything is installed.
model-named:
	@test -n "$(MODEL)" || { echo "error: which model? \`make benchmark MODEL=...\`," \
	  "with BASE_URL=... for an endpoint" >&2; exit 1; }

version-named:
	@test -n "$(VERSION)" || { echo "error: which version? \`make release VERSION=v1.0.0\`;" \
	  "CHANGELOG.md has those that exist" >&2; exit 1; }

lock: ## resolve pyproject.toml into requirements.lock, newest versions
	rm -rf .cache/lock-venv && $(PYTHON) -m venv .cache/lock-venv
	.cache/lock-venv/bin/pip install --quiet --upgrade --upgrade-strategy eager '.[test]'
	.cache/lock-venv/bin/pip check
	.cache/lock-venv/bin/pip freeze --exclude libra | grep -viE '^(nvidia-|triton|cuda-)' \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/' > requirements.lock
	rm -rf .cache/lock-venv build libra.egg-info

# uv resolves torch to the build that fits the machine (`auto`: CPU if there is no GPU); pip takes
# what its index offers, often the one for GPUs with gigabytes of CUDA. So without uv and a GPU pip
# installs uv first; if uv finds no CPU build, pip installs everything.
$(VENV)/installed: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --torch-backend auto -r requirements.lock || \
	  uv pip install --quiet --python $(BIN)/python -r requirements.lock; \
	else \
	  pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; \
	  ! command -v nvidia-smi >/dev/null && $$pip uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu \
	    -r requirements.lock 2>/dev/null || \
	  $$pip -r requirements.lock; \
	fi
	touch $@
