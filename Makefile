# Everything runs through .venv/bin/python -m: a venv's scripts break when its path has a space.
# For the same reason no path below is absolute.
PY := .venv/bin/python
CODE := shared services workers tests tools configs experiments
# The tests run in two halves at once, and these take as long as all other tests.
HALF := tests/real tests/workers tests/deploy tests/shared
# `make test-fast` leaves out whole platforms, trainings and real engines.
test-fast: MARKS := -m "not slow and not vllm and not gpu"

.DEFAULT_GOAL := help
.PHONY: help setup demo up env test test-fast test-some test-half test-rest lint audit format bench-generate bench-scale bench-chat bench-reward bench-train soak-chat fuzz-chat chaos clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and install everything into it (a repeat is instant)
	@PYTHON="$(PYTHON)" sh requirements/install.sh

demo: setup ## Run two iterations on the bundled model, then chat with the result
	@$(PY) -m services.cli demo

up: setup ## Run the platform until Ctrl-C
	@$(PY) -m services.cli up

env: ## Write .env for docker compose, with new secrets
	@test ! -e .env || { echo ".env exists already; to make a new one, move it away first" >&2; exit 1; }
	@umask 077; secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	    sed -e "s/^POSTGRES_PASSWORD=$$/&$$(secret)/" -e "s/^FORETHOUGHT_SERVICE_KEY=$$/&$$(secret)/" \
	    .env.example > .env
	@echo "wrote .env; next: docker compose up -d --wait"

test: setup ## Lint and run all tests, or some: make test TESTS=tests/shared
	@$(MAKE) --no-print-directory --jobs 2 $(if $(TESTS),lint test-some,test-rest lint test-half)

test-fast: setup ## Run the tests without vLLM, trainings and whole platforms
	@$(MAKE) --no-print-directory --jobs 2 MARKS='$(MARKS)' test-rest test-half

test-some: .venv-clients/installed
	$(PY) -m pytest $(TESTS)

test-half: PART := $(HALF)
test-half: $(if $(MARKS),,.venv-clients/installed)
test-rest: PART := tests $(HALF:%=--ignore=%)

# Waiting threads sleep, so that the other half has the core.
test-half test-rest: export OMP_WAIT_POLICY := passive
test-half test-rest:
	@bash -o pipefail -c '$(PY) -m pytest $(MARKS) $(PART) | sed -u "s/^/$(@:test-%=%): /"'

.venv-clients/installed: requirements/clients.lock | setup
	@$(PY) -m venv --clear .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --no-deps -r requirements/clients.lock
	@touch $@

lint: setup ## Check with ruff, mypy and the import rules
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy $(CODE)
	$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'

audit: .venv-audit/installed ## Run bandit on the code, and pip-audit on the locks (asks pypi.org)
	.venv-audit/bin/python -m bandit --quiet --recursive --severity-level medium --configfile pyproject.toml shared services workers configs
	@.venv-audit/bin/python -m pip_audit --strict --disable-pip --no-deps \
	    $(foreach lock,api trl vllm embedded,--requirement requirements/$(lock).lock) \
	    || { echo "audit: pip-audit reports a vulnerability, or pypi.org did not answer: see above" >&2; exit 1; }

.venv-audit/installed: requirements/audit.lock | setup
	@$(PY) -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

format: setup ## Fix and format the code with ruff
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

bench-generate: setup ## Measure tokens/s through the platform beside bare vLLM
	@$(PY) -m tools.bench.generate

bench-scale: setup ## Measure an iteration of the paper's size with an instant engine
	@$(PY) -m tools.bench.scale

bench-chat: setup ## Measure chat: latency, requests/s beside LiteLLM, tokens/s beside bare vLLM
	@$(PY) -m tools.bench.chat

bench-reward: setup ## Measure chats/s of a reward model in transformers and in vLLM
	@$(PY) -m tools.bench.reward

bench-train: setup ## Measure pairs/s of a training beside bare TRL
	@$(PY) -m tools.bench.train

soak-chat: setup ## Run ten minutes of chat at the highest steady load
	@$(PY) -m tools.bench.soak

fuzz-chat: setup ## Try 100,000 adversarial thoughts, streamed and not: none may leak
	CASES=12500 $(PY) -m pytest --timeout=0 -v tests/services/chat/test_leaks.py

chaos: setup ## Kill processes and servers during iterations: all must end with the same result
	@$(PY) -m tools.chaos $(CHAOS)

clean: ## Remove the environment, the caches and the platform's data (.forethought)
	rm -rf .venv .venv-clients .venv-audit .forethought *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
