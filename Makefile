# Everything from a fresh clone: `make demo` (a table in minutes), `make test`.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PYTEST := pytest -n 2 --dist loadscope
RULES := Snakefile workflow/rules

.PHONY: help demo test test-fast faults fix schema docs bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ok: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,slurm,models,examples,docs]'
	touch $@

demo: .venv/.ok ## table 4 on the digits, in minutes on two CPU cores, offline once installed
	snakemake --cores all results/table4.csv
	@cat results/table4.md

# One thread a process: two that have two each on two cores are nine times slower.
test test-fast faults: export OMP_NUM_THREADS = 1
test: .venv/.ok ## style, spelling, types and all tests
	ruff check
	ruff format --check
	snakefmt --check $(RULES)
	codespell
	mypy
	$(PYTEST)

test-fast: .venv/.ok ## style and the fast tests, while you work
	ruff check
	ruff format --check
	$(PYTEST) -m "not slow"

faults: .venv/.ok ## kills, damage, full disks in full: results/faults.json, in half an hour
	DFSHIELD_FAULTS=full pytest -n 2 --dist load tests/faults

fix: .venv/.ok ## style, mended where a tool can mend it
	ruff check --fix
	ruff format
	snakefmt $(RULES)

schema: .venv/.ok ## the schema of config files, written anew from the options
	dfshield schema > workflow/schemas/config.schema.json

docs: .venv/.ok ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

bench: .venv/.ok ## times as ratios to the plainest version of the same algorithm; BENCH="--undefended …" for attacks
	python -m benchmarks.bench $(BENCH)

clean: ## remove the environment, the site and caches; results/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .snakemake site *.egg-info
