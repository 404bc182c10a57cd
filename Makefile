# Everything runs in .venv, which the first target that needs it creates from Python 3.11 alone.
#   make test            make test ARGS="tests/core -x"            make venv PYTHON=/usr/bin/python3.12

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
TEST_TIMEOUT_S ?= 120

PROTOS := $(wildcard protos/hasfaas/wire/v1/*.proto)
# Generated code lies here: `make protos` writes into the tree, `make protos-check` aside, to compare.
PROTO_OUT ?= .
# Where google/rpc/status.proto lies: the package that carries it, googleapis-common-protos.
COMMON_PROTOS = $(shell $(BIN)/python -c 'import pathlib, google.rpc as g; print(pathlib.Path(list(g.__path__)[0]).parents[1])')
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos -I$(COMMON_PROTOS) \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc

.DEFAULT_GOAL := help
.PHONY: help venv demo test check fmt bench protos protos-check gpu-check docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

venv: $(STAMP) ## the environment, with all that the demo and the tests need

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	@echo "creating $(VENV) and installing hasfaas with its demo and development packages (once; minutes on a slow line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing: on Debian, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,demo,cuda]'
	@touch $(STAMP)

demo: $(STAMP) ## trains a small network, deploys it, measures it at several quotas
	@$(BIN)/python -m examples.demo $(ARGS)

# Tests that neither measure nor share a machine's time run side by side, one more at a time than there are cores, since many
# wait, each with one thread of linear algebra; then those marked `alone`, one by one, on a machine that is quiet. Only folders
# with such a mark are looked through.
WORKERS = $(shell expr $$(nproc) + 1)
ALONE_IN = $(sort $(dir $(shell grep -rl --include='*.py' 'mark\.alone' tests)))
PYTEST = $(BIN)/python -m pytest -q --timeout=$(TEST_TIMEOUT_S)

test: $(STAMP) ## all tests
ifeq ($(strip $(ARGS)),)
	@OPENBLAS_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist worksteal -m 'not alone'
	@$(PYTEST) -m alone $(ALONE_IN)
else
	@$(PYTEST) $(ARGS)
endif

check: $(STAMP) ## what must hold before a commit: format, lint, types, generated code, tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory protos-check
	@$(MAKE) --no-print-directory test ARGS=

fmt: $(STAMP) ## formats, and applies the lint's safe cures
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

bench: $(STAMP) ## measures enforcement; ARGS="--json out.json" keeps the figures
	@$(BIN)/python -m benchmarks.enforcement $(ARGS)

protos: $(STAMP) ## generates hasfaas/wire/v1 from protos/
	@mkdir -p $(PROTO_OUT)
	@$(PROTOC) --python_out=$(PROTO_OUT) --pyi_out=$(PROTO_OUT) $(PROTOS)
	@$(PROTOC) --grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=quiet:$(PROTO_OUT) $$(grep -l '^service ' $(PROTOS))

protos-check: $(STAMP) ## fails if the generated code is not that of protos/
	@rm -rf out/protos
	@$(MAKE) --no-print-directory protos PROTO_OUT=out/protos
	@diff -r -x __init__.py -x __pycache__ out/protos/hasfaas/wire/v1 hasfaas/wire/v1 \
		|| { echo "hasfaas/wire/v1 is not what protos/ says: run make protos"; exit 1; }

# The Python that is given, else that of .venv, else the one on PATH, each as it is: nothing is created or installed here.
GPU_PYTHON = $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(shell command -v python3 || command -v python)))

gpu-check: ## proves or refutes on this machine's NVIDIA GPU what the CUDA path claims; --dry-run lists it
	+@$(GPU_PYTHON) -c 'import attrs, numpy' 2>/dev/null || { echo "$(GPU_PYTHON) lacks attrs or numpy: say make gpu-check PYTHON=... with one that has them, CuPy and torch"; exit 2; }
	+@$(GPU_PYTHON) -m benchmarks.gpu_check $(if $(findstring n,$(firstword -$(MAKEFLAGS))),--dry-run) $(ARGS)

docs: $(STAMP) ## every link between the documents resolves
	@$(BIN)/python -m pytest -q tests/test_docs.py

clean: ## removes caches and built files, and keeps .venv
	@rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find hasfaas tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
