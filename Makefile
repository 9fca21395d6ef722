# make help lists the targets. PYTHON chooses the interpreter that builds .venv; ARGS is passed on;
# JOBS is how many processes share the tests.
PYTHON ?= python3
ARGS ?=
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## fine-tune a small model end to end; make demo ARGS="--seed 1"
	$(BIN)/adazeta demo $(ARGS)

test: lint ## lint, then run the tests; make test ARGS="-k kernels"
	$(BIN)/python -m pytest -p no:benchmark -n $(JOBS) --dist loadfile $(ARGS)

bench: $(INSTALLED) ## quick benchmarks, compared with the committed results of this machine class
	@mkdir -p runs
	$(BIN)/python -m benchmarks all --quick --json runs/bench.json --compare $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy adazeta kernels

clean: ## remove .venv, caches and build products (runs/ is kept)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last: an interrupted install is repeated, an existing environment is reused.
$(INSTALLED): setup.py pyproject.toml constraints.txt $(wildcard kernels/cpu/*.[ch])
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo,test]"
	@touch $@
