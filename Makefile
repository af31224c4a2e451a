# Everything runs through .venv/bin/python -m: scripts in a venv break where its path has a space.
# No path below is absolute, for the same reason.
PY := .venv/bin/python
CODE := shared services workers tests tools configs experiments
# These take as long as all other tests.
HALF := tests/real tests/workers tests/deploy

.DEFAULT_GOAL := help
.PHONY: help setup demo up env test test-some test-half test-rest lint audit format bench-generate bench-scale bench-chat bench-reward bench-train soak-chat fuzz-chat chaos clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv and install everything into it (repeats are instant)
	@PYTHON="$(PYTHON)" sh requirements/install.sh

demo: setup ## Two iterations on the bundled model, then a chat with the result
	@$(PY) -m services.cli demo

up: setup ## Run the platform until Ctrl-C
	@$(PY) -m services.cli up

env: ## Write .env for docker compose, with secrets of its own
	@test ! -e .env || { echo "there is a .env already" >&2; exit 1; }
	@umask 077; secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	    sed -e "s/^POSTGRES_PASSWORD=$$/&$$(secret)/" -e "s/^FORETHOUGHT_SERVICE_KEY=$$/&$$(secret)/" \
	    .env.example > .env
	@echo "wrote .env; next: docker compose up -d --wait"

test: setup ## Lint and run the tests, in two halves at once; TESTS=tests/shared for some of them
	@$(MAKE) --no-print-directory --jobs 2 $(if $(TESTS),lint test-some,test-rest lint test-half)

test-some: .venv-clients/installed
	$(PY) -m pytest $(TESTS)

test-half: PART := $(HALF)
test-half: .venv-clients/installed
test-rest: PART := tests $(HALF:%=--ignore=%)

# Threads that wait leave the core to the other half.
test-half test-rest: export OMP_WAIT_POLICY := passive
test-half test-rest:
	@bash -o pipefail -c '$(PY) -m pytest $(PART) | sed -u "s/^/$(@:test-%=%): /"'

.venv-clients/installed: requirements/clients.lock | setup
	@$(PY) -m venv --clear .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --no-deps -r requirements/clients.lock
	@touch $@

lint: setup ## ruff, mypy and the import rules
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy $(CODE)
	$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()'

audit: .venv-audit/installed ## bandit on the code; pip-audit on what is locked, which asks pypi.org
	.venv-audit/bin/python -m bandit --quiet --recursive --severity-level medium --configfile pyproject.toml shared services workers configs
	@.venv-audit/bin/python -m pip_audit --strict --disable-pip --no-deps \
	    $(foreach lock,api trl vllm embedded,--requirement requirements/$(lock).lock) \
	    || { echo "audit: pip-audit found something, or pypi.org did not answer: see above" >&2; exit 1; }

.venv-audit/installed: requirements/audit.lock | setup
	@$(PY) -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

format: setup ## Fix what ruff can fix
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

bench-generate: setup ## Tokens per second through the platform against bare vLLM
	@$(PY) -m tools.bench.generate

bench-scale: setup ## An iteration at the paper's size with an instant engine
	@$(PY) -m tools.bench.scale

bench-chat: setup ## Chat's latency, requests/s beside LiteLLM, tokens/s beside bare vLLM
	@$(PY) -m tools.bench.chat

bench-reward: setup ## A reward model's chats/s by transformers and by vLLM
	@$(PY) -m tools.bench.reward

bench-train: setup ## Pairs per second of a training beside bare TRL
	@$(PY) -m tools.bench.train

soak-chat: setup ## Ten minutes of chat at the highest steady load
	@$(PY) -m tools.bench.soak

fuzz-chat: setup ## 100,000 adversarial thoughts, each streamed and not: none may leak
	CASES=12500 $(PY) -m pytest --timeout=0 -v tests/services/chat/test_leaks.py

chaos: setup ## Iterations with processes killed, servers away, messages lost; all must end alike
	@$(PY) -m tools.chaos $(CHAOS)

clean: ## Remove the environment, caches and the platform's data (.forethought)
	rm -rf .venv .venv-clients .venv-audit .forethought *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
