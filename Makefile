# Every target is a line or two; `make help` lists them. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
MANIFEST ?= crds/examples/smollm2.yaml
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PLANE = PYTHONPATH=tests/cluster/src $(BIN)/python -m lmd_plane
QUESTION ?= What is the capital of France?

.DEFAULT_GOAL := help
.PHONY: help serve test test-cluster test-long test-node test-reliability soak bench-operator bench-worker bench-gpu cluster cluster-down matrix node images images-full check test-fast fmt fmt-check lint types imports generate check-generated lock clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

serve: $(VENV)/.serve ## Serve MANIFEST on this machine, ask QUESTION, stay up until Ctrl-C
	@exec $(BIN)/lmd serve $(MANIFEST) --port $(PORT) --ask "$(QUESTION)" --end-with-parent

test: $(VENV)/.dev ## Run all tests: everything of `check`, and the real servers and models
	$(MAKE) --no-print-directory check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "model and not long"
	$(MAKE) --no-print-directory test-cluster
	$(BIN)/pytest -rs -m node -k example_answers tests/node

test-cluster: $(VENV)/.dev ## Run the tests that need a control plane, and one of each kind of fault
	$(BIN)/pytest -n 4 --dist worksteal -m cluster

test-long: $(VENV)/.bench ## Run the variants of model tests that shorter ones stand for in `test`
	$(BIN)/pytest -m long

test-reliability: $(VENV)/.dev ## All other faults: crashes, cuts, drift, leadership; long, LMD_LONG=1 is longer still
	$(BIN)/pytest -n 2 -m "reliability and not cluster"

test-node: $(VENV)/.dev ## Run what needs a real node or the images; root, containerd's helpers, minutes
	$(BIN)/pytest -m node

bench-operator: $(VENV)/.dev ## Measure what the operator costs, on a control plane of its own
	$(BIN)/python tests/bench/operator_bench.py --objects 100 1000

matrix: $(VENV)/.dev ## Run every model family under every strategy and write docs/families.md
	LMD_MATRIX=1 $(BIN)/pytest -m model tests/model/test_matrix.py

soak: $(VENV)/.dev ## Serve random clients for twenty minutes and look for leaks
	LMD_SOAK_SECONDS=1200 $(BIN)/pytest -s -m model tests/local/test_soak.py

bench-worker: $(VENV)/.bench ## Measure what serving costs on this machine, next to other ways to serve; two hours
	$(BIN)/python tests/bench/worker_bench.py
	$(BIN)/python tests/bench/worker_bench.py --spare-core --streams 1 8 32
	$(BIN)/python tests/bench/prefill_bench.py
	$(BIN)/python tests/bench/reduction_bench.py

bench-gpu: $(VENV)/.bench ## Measure what serving costs on one GPU, next to other ways and to its memory's speed; no JVM
	$(BIN)/python tests/bench/gpu_bench.py

cluster: $(VENV)/.dev ## Start a real control plane with fake GPU nodes; it prints what to export
	@$(PLANE) up

node: $(VENV)/.dev ## Add a real node to it that has both images and some volumes; needs root
	@images/build-thin
	@ENGINE=buildah ATTEST=no images/build operator
	@$(PLANE) node --image lmd-worker:thin=lmd-worker:$(VERSION) --image lmd-operator:$(VERSION) --packages $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

images: ## Build the images with docker, podman or buildah
	images/build operator
	images/build worker-dependencies
	images/build worker

images-full: export ENGINE = buildah
images-full: images $(VENV)/.dev ## Build them by buildah, and let a pod of the whole worker image answer on a real node; once per release, root
	LMD_FULL_IMAGE=1 $(BIN)/pytest -s -m node -k example_answers tests/node

cluster-down: $(VENV)/.dev ## End it and remove everything of it
	@$(PLANE) down

check: $(VENV)/.dev fmt-check lint types imports check-generated test-fast ## Format, lint, types, import contracts, generated files, fast tests

# without bytecode, every run would compile all tests anew
test-fast: $(VENV)/.dev
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n 2 -m "not model and not cluster and not reliability and not node"

fmt: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

fmt-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

generate: $(VENV)/.dev ## Write what is generated: the CRD, the golden files, docs/planning.md and docs/performance.md, the plain manifests
	$(BIN)/python -m lmd_operator.api.crd > crds/largemodel.dev_largemodeldeployments.yaml
	cp crds/largemodel.dev_largemodeldeployments.yaml charts/lmd-operator/files/crd.yaml
	$(BIN)/python -m lmd_operator.planning.tables > docs/planning.md
	$(BIN)/python tests/bench/performance_page.py > docs/performance.md
	UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/golden
	UPDATE_GOLDEN=1 $(BIN)/pytest -q -m cluster tests/chart/test_helm.py

check-generated: $(VENV)/.dev ## Fail when a generated file is not what `generate` would write
	@$(BIN)/python -m lmd_operator.api.crd | diff -u crds/largemodel.dev_largemodeldeployments.yaml - \
		|| { echo "run make generate"; exit 1; }
	@$(BIN)/python -m lmd_operator.planning.tables | diff -u docs/planning.md - || { echo "run make generate"; exit 1; }
	@$(BIN)/python tests/bench/performance_page.py | diff -u docs/performance.md - || { echo "run make generate"; exit 1; }
	@cmp crds/largemodel.dev_largemodeldeployments.yaml charts/lmd-operator/files/crd.yaml || { echo "run make generate"; exit 1; }

# One environment, pinned and hash-checked: the installer by pip, the rest by the installer.
$(VENV)/.bootstrap: requirements/bootstrap.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	touch $@

INSTALL = DS_BUILD_OPS=0 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-build-isolation --compile-bytecode

$(VENV)/.serve: $(VENV)/.bootstrap requirements/serve.txt pyproject.toml
	@echo "installing the pinned requirements into $(VENV) (about 5 GB, most of it PyTorch)"
	$(INSTALL) --require-hashes -r requirements/serve.txt
	$(INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	touch $@

$(VENV)/.bench: $(VENV)/.dev requirements/bench.txt
	$(INSTALL) --require-hashes -r requirements/bench.txt
	touch $@

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

lock: $(VENV)/.bootstrap ## Pin the requirements anew; UPGRADE=--upgrade takes newer versions
	$(COMPILE) $(UPGRADE) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(COMPILE) $(UPGRADE) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	$(COMPILE) $(UPGRADE) pyproject.toml --group bench -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) pyproject.toml --all-extras -c requirements/dev.txt -o requirements/serve.txt
	$(COMPILE) pyproject.toml --extra operator -c requirements/dev.txt -o images/operator/requirements.txt
	$(COMPILE) pyproject.toml --extra worker --extra engine -c requirements/dev.txt -o images/worker/requirements.txt

clean: ## Remove the environment and everything that tools leave behind
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
