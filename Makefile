# Everything from a fresh clone: `make demo` (a table in minutes), `make test`.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help demo test bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/'

.venv/.ok: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.ok ## table 4 on the digits, in minutes on two CPU cores, offline once installed
	snakemake --cores all results/table4.csv
	@cat results/table4.md

# One thread a process: two that have two each on two cores are nine times slower.
test: export OMP_NUM_THREADS = 1
test: .venv/.ok ## style, types and all tests
	ruff check
	ruff format --check
	mypy
	pytest -n 2 --dist loadscope

bench: .venv/.ok ## times as ratios to the plainest version of the same algorithm; BENCH="--undefended …" for attacks
	python -m benchmarks.bench $(BENCH)

clean: ## remove the environment and caches; results/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .snakemake *.egg-info
