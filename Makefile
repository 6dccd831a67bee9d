# Every target first makes .venv/.ready, so one command is enough on a fresh machine with Python 3.11 and pip.
PY ?= python3.11
BIN := .venv/bin
DISTS := pyproject.toml $(wildcard plugins/*/pyproject.toml entrypoints/*/pyproject.toml)
CODE := src plugins entrypoints tests benchmarks
.DEFAULT_GOAL := help
.PHONY: help demo demo-check test lint types unit core-only docs schema clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/.ready: requirements-dev.txt constraints.txt $(DISTS)
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install -q uv && \
	  $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -r requirements-dev.txt || \
	  $(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	touch $@
