# Everything here prepares what it needs by itself: see hack/env/setup.sh.
VENV := .venv
BIN := $(VENV)/bin
SETUP := sh hack/env/setup.sh

# More arguments for each target, for example: make test PYTEST_ARGS='-k resume -x'
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
IMAGES_ARGS ?=

# What the programs in hack/ import: each other, the product, and the tests' support.
HACK := PYTHONPATH=hack:loader:operator:tests $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup check lint types test e2e demo demo-cluster cluster-up cluster-down images chart bench bench-operator bench-webhook lock format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Prepare .venv with everything for working on Tonnage
	@$(SETUP) lint

demo: ## Load a real model from a real S3 server, step by step (about a minute)
	@$(SETUP) test
	@$(BIN)/python examples/demo/demo.py $(DEMO_ARGS)

test: ## Run all tests
	@$(SETUP) test
	@$(BIN)/python $(if $(PYTEST_ARGS),-m pytest $(PYTEST_ARGS),hack/env/run_tests.py)

e2e: ## Run the tests that need a real node: real images, chart, kubelet and pods (part of make test)
	@$(SETUP) test
	@$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

demo-cluster: ## Tell the story of Tonnage on a real one-node cluster (as root; about three minutes)
	@$(SETUP) test
	@$(HACK) -m demo_cluster story $(DEMO_ARGS)

cluster-up: ## Start a real one-node cluster with Tonnage, an S3 server and a model in it (as root)
	@$(SETUP) test
	@$(HACK) -m demo_cluster up $(DEMO_ARGS)

cluster-down: ## End that cluster and leave nothing behind
	@$(SETUP) test
	@$(HACK) -m local_cluster down

images: ## Build the container images of loader and operator
	@python3 hack/images/build.py $(IMAGES_ARGS)

chart: ## Bring the chart's copies of CRDs and roles, and its table of values, up to date
	@$(SETUP) test
	@$(BIN)/python hack/chart/sync.py
	@$(BIN)/python hack/chart/values_table.py

check: lint types ## Everything that CI checks besides the tests

lint: ## Lint, format check and import contracts
	@$(SETUP) lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

types: ## Type check (mypy, strict)
	@$(SETUP) lint
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests operator/tonnage_operator
	$(BIN)/mypy benchmarks/loader/*.py examples/demo/*.py
	$(BIN)/mypy benchmarks/attach/*.py
	$(BIN)/mypy --explicit-package-bases benchmarks/operator benchmarks/webhook
	$(BIN)/mypy hack/images/*.py
	$(BIN)/mypy hack/env/*.py

bench: ## Measure Tonnage beside its peers into docs/performance/ (about 20 minutes)
	@$(SETUP) bench
	@$(BIN)/python benchmarks/loader/bench.py $(BENCH_ARGS)

bench-operator: ## Measure the controller with many objects and nodes (see BENCH_ARGS=--help)
	@$(SETUP) test
	@$(HACK) benchmarks/operator/scale.py $(BENCH_ARGS)

bench-webhook: ## Measure the webhook's latency at 50 pods a second (a minute)
	@$(SETUP) test
	@$(HACK) benchmarks/webhook/latency.py $(BENCH_ARGS)

format: ## Mend what ruff can mend
	@$(SETUP) lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## Pin requirements/*.txt anew after a change of pyproject.toml
	@$(SETUP) lint
	@sh hack/env/lock.sh

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
