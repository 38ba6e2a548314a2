# Everything a newcomer runs. Each target makes what it needs first; `make help` lists them.

SHELL := /bin/bash
VENV ?= .venv
ARGS ?=
# Tests that run at once. Most of their time goes into waiting for servers that they start; more need more memory.
TEST_WORKERS ?= 2
BIN := $(VENV)/bin

# Threads that spin long while they wait for the next matrix product make the same work several times slower on few
# cores; those that do not spin at all hardly help each other.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 1000

.DEFAULT_GOAL := help
.PHONY: help demo demo-full up test chaos soak fuzz bench bench-scaling bench-policies bench-pii bench-revision \
  bench-training bench-curve otel capacity lint types format venv constraints

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the whole loop once, small: install, run, report (ARGS=--keep leaves it running)
	@docker/install/system.sh demo
	@docker/install/python.sh $(VENV) engine train embedded
	FLYWHEEL_OTELCOL=$$(docker/install/collector.sh --cached) $(BIN)/flywheel demo $(ARGS)

demo-full: ## the whole loop on all prompts, where quality is judged
	@docker/install/system.sh demo
	@docker/install/python.sh $(VENV) engine train embedded
	FLYWHEEL_OTELCOL=$$(docker/install/collector.sh --cached) $(BIN)/flywheel demo --full $(ARGS)

up: ## the embedded stack and all workers, for development
	@docker/install/system.sh demo
	@docker/install/python.sh $(VENV) engine train embedded
	$(BIN)/flywheel up $(ARGS)

test: ## all tests (ARGS='tests/unit -k name' for some; FLYWHEEL_REQUIRE_ALL=1 makes a skip a failure)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	FLYWHEEL_OPA=$$(docker/install/opa.sh) FLYWHEEL_OTELCOL=$$(docker/install/collector.sh) \
	  FLYWHEEL_TEST_KUSTOMIZE=$$(docker/install/kustomize.sh) FLYWHEEL_TEST_COMPOSE=$$(docker/install/compose.sh) \
	  $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(ARGS)

chaos: ## faults at random, seed after seed; the table in tests/chaos/README.md (ARGS='--seeds 20')
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

soak: ## a steady load for long: memory, files and latency must stay flat (ARGS='--minutes 60 --rate 5000')
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m chaos.soak $(ARGS)

fuzz: ## hostile input at every boundary, target by target (ARGS='all --seconds 600'; ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m fuzz $(or $(ARGS),all)

bench: ## what routing costs, beside other ways to do it: a table, and var/bench/routing.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m benchmarks $(ARGS)

bench-scaling: ## what 1, 2 and 4 routing workers cost side by side: var/bench/scaling.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m benchmarks.scaling $(ARGS)

bench-policies: ## what deciding, judging and auditing cost: var/bench/policies.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	FLYWHEEL_OPA=$$(docker/install/opa.sh) PYTHONPATH=tests $(BIN)/python -m benchmarks.policies $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m benchmarks.constitution

otel: venv ## the collector's configuration from the table of personal data: otel/collector.yaml
	$(BIN)/python -m otel.collector_config

bench-pii: ## what finding personal data costs and how well it is done: var/bench/pii.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	FLYWHEEL_OTELCOL=$$(docker/install/collector.sh --cached) PYTHONPATH=tests $(BIN)/python -m benchmarks.pii $(ARGS)

bench-training: ## what private training costs: var/bench/training.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m benchmarks.training $(ARGS)

bench-curve: ## quality at epsilon 1, 2, 4, 8 and without privacy: a curve in var/bench/training.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m benchmarks.training_curve $(ARGS)

bench-revision: ## what critique and revision reach and cost: var/bench/revision.json (ARGS=--help)
	@docker/install/system.sh test
	@docker/install/python.sh $(VENV) engine train embedded test
	PYTHONPATH=tests $(BIN)/python -m benchmarks.revision $(ARGS)

capacity: venv ## what a load takes, from the benchmarks' documents: docker/CAPACITY.md
	PYTHONPATH=tests $(BIN)/python -m benchmarks.capacity $(ARGS)

lint: venv ## style of Python and shell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v shellcheck >/dev/null; then shellcheck docker/*.sh docker/*/*.sh .ci/run; \
	else echo "shellcheck is not installed: shell scripts were not checked (apt-get install shellcheck)"; fi

types: venv ## static types
	$(BIN)/mypy

format: venv ## rewrite Python in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: ## the virtual environment with everything, as tests need it
	@docker/install/python.sh $(VENV) engine train embedded test

constraints: venv ## pin what is installed now into constraints.txt
	@docker/install/pin.sh $(VENV)
