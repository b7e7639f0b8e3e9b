# Each target installs what it needs: see hack/env/setup.sh.
VENV := .venv
BIN := $(VENV)/bin
SETUP := sh hack/env/setup.sh

# Additional arguments of a target, for example: make test PYTEST_ARGS='-k resume -x'
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
# Where nginx may be: hack/env/setup.sh puts one into .venv if there is none.
export PATH := $(PATH):/usr/sbin:$(CURDIR)/$(VENV)/nginx
# What hack/env/engines.sh and tests/engines take from the environment.
export VLLM ENGINE_MATRIX
# With it each of some thousand processes would compile PyTorch, kopf and all else again.
unexport PYTHONDONTWRITEBYTECODE
IMAGES_ARGS ?=

# The programs in hack/ import each other, the product, and the support packages of the tests.
HACK := PYTHONPATH=hack:loader:operator:tests $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup check lint types test engines e2e demo demo-cluster kind-up kind-down cluster-up cluster-down images chart bench bench-operator bench-first-token bench-start bench-streaming bench-webhook bench-fleet simulate-fleet lock format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create .venv with everything for development
	@$(SETUP) lint

demo: ## Load a model from an S3 server on this machine, step by step, and start an engine on it (about a minute)
	@$(SETUP) test
	@$(BIN)/python examples/demo/demo.py $(DEMO_ARGS)

test: ## Run all tests
	@$(SETUP) test
	@$(BIN)/python $(if $(PYTEST_ARGS),-m pytest $(PYTEST_ARGS),hack/env/run_tests.py)

engines: ## Start real engines on what Tonnage loads: vLLM, transformers and others (7 GB; VLLM=0.33.0 tries another version)
	@$(SETUP) test
	@hack/env/engines.sh >/dev/null
	@$(BIN)/python -m pytest tests/engines $(PYTEST_ARGS)

e2e: ## Run the tests on a real node, with images, chart, kubelet and pods (part of make test)
	@$(SETUP) test
	@$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)

kind-up: ## Create a kind cluster with Tonnage (needs docker, kind, kubectl and helm)
	@hack/kind/cluster.sh up

kind-down: ## Delete the kind cluster
	@hack/kind/cluster.sh down

demo-cluster: ## Demonstrate Tonnage on a one-node cluster, step by step (as root; about 3 minutes)
	@$(SETUP) test
	@$(HACK) -m demo_cluster demo $(DEMO_ARGS)

cluster-up: ## Start a one-node cluster with Tonnage and an S3 server that has a model (as root)
	@$(SETUP) test
	@$(HACK) -m demo_cluster up $(DEMO_ARGS)

cluster-down: ## Stop and remove that cluster
	@$(SETUP) test
	@$(HACK) -m local_cluster down

images: ## Build the images of loader, peer and operator
	@python3 hack/images/build.py $(IMAGES_ARGS)

chart: ## Generate the chart's CRDs, roles and table of values
	@$(SETUP) test
	@$(BIN)/python hack/chart/sync.py
	@$(BIN)/python hack/chart/values_table.py

check: lint types ## Run all checks of CI except the tests

lint: ## Check style, format, import contracts and the Dockerfile
	@$(SETUP) lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

types: ## Check types (mypy, strict)
	@$(SETUP) lint
	@[ -e .mypy_cache ] || hack/env/kept.sh restore mypy .mypy_cache
	$(BIN)/mypy --explicit-package-bases loader/tonnage operator/tonnage_operator hack/local_cluster hack/demo_cluster hack/env \
		tests benchmarks/operator benchmarks/start benchmarks/webhook
	$(BIN)/mypy benchmarks/loader/*.py examples/demo/*.py
	$(BIN)/mypy benchmarks/attach/*.py
	$(BIN)/mypy benchmarks/fleet/*.py
	$(BIN)/mypy hack/images/*.py
	@hack/env/kept.sh save mypy .mypy_cache

bench: ## Compare Tonnage with other loaders, into docs/performance/ (about 20 minutes)
	@$(SETUP) bench
	@$(BIN)/python benchmarks/loader/bench.py $(BENCH_ARGS)

bench-operator: ## Measure the controller with many objects and nodes (BENCH_ARGS=--help shows options)
	@$(SETUP) test
	@$(HACK) benchmarks/operator/scale.py $(BENCH_ARGS)

bench-first-token: ## Measure the time to vLLM's first token, cold, streaming, warm, with artifacts, on a real node (about 45 minutes)
	@$(SETUP) test
	@$(SETUP) bench
	@$(HACK) benchmarks/start/first_token.py --out docs/performance $(BENCH_ARGS)

bench-start: ## Measure what Tonnage adds to the start of a pod on a real node (about 5 minutes)
	@$(SETUP) test
	@$(HACK) benchmarks/start/overhead.py $(BENCH_ARGS)

bench-streaming: ## Measure how much sooner an engine starts that streams its weights, on a real node (about 10 minutes)
	@$(SETUP) test
	@$(SETUP) bench
	@$(HACK) benchmarks/start/streaming.py --out docs/performance $(BENCH_ARGS)

bench-fleet: ## Measure a fan-out over shaped links in network namespaces, as root, with faults (about 25 minutes)
	@$(SETUP) bench
	@$(HACK) benchmarks/fleet/fan_out.py --faults all --out docs/performance $(BENCH_ARGS)

simulate-fleet: ## Simulate a fan-out to 1,000 nodes by the loader's own decisions (some minutes)
	@$(SETUP) bench
	@$(HACK) benchmarks/fleet/simulation.py --out docs/performance $(BENCH_ARGS)

bench-webhook: ## Measure the webhook's latency at 50 pods per second (about a minute)
	@$(SETUP) test
	@$(HACK) benchmarks/webhook/latency.py $(BENCH_ARGS)

format: ## Fix and format the code with ruff
	@$(SETUP) lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## Update the pins in requirements/*.txt after a change of pyproject.toml
	@$(SETUP) lint
	@sh hack/env/lock.sh

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
