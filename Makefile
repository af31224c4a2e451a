# Everything runs through .venv/bin/python -m: scripts in a venv break where its path has a space.
# No path below is absolute, for the same reason.
PY := .venv/bin/python
CODE := shared services workers tests configs
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format bench-generate bench-scale clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and install everything into it (repeats are instant)
	@PYTHON="$(PYTHON)" sh requirements/install.sh

demo: setup ## Two iterations on the bundled model, then a chat with the result
	@$(PY) -m services.cli demo

up: setup ## Run the platform until Ctrl-C
	@$(PY) -m services.cli up

test: setup lint ## Lint and run the tests; TESTS=tests/shared for some of them
	$(PY) -m pytest $(TESTS)

lint: setup ## ruff, mypy and the import rules
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy $(CODE)
	$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'

format: setup ## Fix what ruff can fix
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

bench-generate: setup ## Tokens per second through the platform against bare vLLM
	@$(PY) -m tests.bench.generate

bench-scale: setup ## An iteration at the paper's size with an instant engine
	@$(PY) -m tests.bench.scale

clean: ## Remove the environment, caches and the platform's data (.forethought)
	rm -rf .venv .forethought *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
