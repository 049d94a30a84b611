# The commands of README.md. Everything goes into .venv; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin

# The first Python >= 3.11 that runs and can make environments; `make demo PYTHON=/path/to/python` names one.
PYTHON ?= $(firstword $(foreach python,python3.13 python3.12 python3.11 python3 python,$(shell \
	$(python) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))

# The newest CUDA that the NVIDIA driver runs, as an extra of pyproject.toml; `make demo CUDA=` stays on the CPU.
CUDA ?= $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[^|]*Version: *\([0-9][0-9]*\).*/\1/p' \
	| awk '$$1 >= 13 { print "cuda13" } $$1 == 12 { print "cuda12" }')

# Tests at a time; each may take two gigabytes.
WORKERS ?= 2

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench parity gpu clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-8s  %s\n' "$$name" "$$text"; done

install: $(VENV)/.installed ## the environment in .venv, with the tools for development

demo: $(VENV)/.installed-runtime ## a teacher, a student without data, the table: a few minutes on a CPU
	$(BIN)/python -m cudfkd_jax.main --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/.installed ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist=worksteal

lint: $(VENV)/.installed ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-runtime ## speed of the steps, beside the ceilings of this machine
	$(BIN)/python scripts/benchmark.py --config=configs/digits.py

# Checkouts of the released code: ljrprocc/DataFree, and if given kuluhan/PRE-DFKD and polo5's zero-shot transfer.
RELEASE ?=
PREDFKD ?=
ZSKT ?=
PARITY := .venv-parity

parity: $(PARITY)/.installed ## the released code in RELEASE beside ours, quantity by quantity, on a CPU
	$(if $(RELEASE),,$(error name a checkout of ljrprocc/DataFree: make parity RELEASE=DataFree))
	$(PARITY)/bin/python -W ignore scripts/check_parity.py --release=$(RELEASE) $(PREDFKD:%=--pre-dfkd=%) \
		$(ZSKT:%=--zero-shot=%)

# What `make gpu` reads and writes, and how it computes.
DATA ?= data
SOURCE ?= archive
OUT ?= runs/gpu
BF16 := --config.compute_dtype=bfloat16
PAIR_resnet34_resnet18 := --config=configs/cifar10.py --config.distill.batch_size=256
PAIR_wrn40_2_wrn16_2 := --config=configs/cifar10.py:teacher=wrn40_2,student=wrn16_2
PAIR_tiny_imagenet := --config=configs/tiny_imagenet.py
PAIRS := resnet34_resnet18 wrn40_2_wrn16_2 tiny_imagenet
TEACHER := --config.teacher.epochs=50 --config.teacher.batch_size=512 --config.teacher.learning_rate=0.4 \
	--config.teacher.warmup_epochs=10

gpu: $(PAIRS:%=$(OUT)/%.json) ## on a GPU: speed beside PyTorch's, then the run of Table V on CIFAR-10 in DATA
	$(BIN)/python -m cudfkd_jax.main $(PAIR_resnet34_resnet18) $(BF16) $(TEACHER) \
		--config.data.source=$(SOURCE) --config.data.dir=$(DATA) --workdir=$(OUT)/table_v

$(OUT)/%.json: | $(VENV)/.installed-torch
	@mkdir -p $(OUT)
	$(BIN)/python scripts/benchmark.py $(PAIR_$*) $(BF16) --peer=torch --json > $@

.DELETE_ON_ERROR:

clean: ## remove the environment and the caches of the tools; runs stay
	rm -rf $(VENV) $(PARITY) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cudfkd_jax configs scripts tests -name __pycache__ -prune -exec rm -rf {} +

# Installed again whenever pyproject.toml changes; pip itself is the last thing that a new environment gets.
$(VENV)/bin/pip:
	$(if $(PYTHON),,$(error no Python >= 3.11 that can make environments; install one (Debian, Ubuntu: with its \
		python3-venv) or name one, e.g. make demo PYTHON=/path/to/python3.12))
	@echo "making the environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-runtime: pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV)$(CUDA:%= with %) (a minute or two)"
	@$(PIP) --editable ".$(CUDA:%=[%])"
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "installing into $(VENV)$(CUDA:%= with %), with the tools for development (a minute or two)"
	@$(PIP) --editable ".[dev$(CUDA:%=,%)]"
	@touch $@ $(VENV)/.installed-runtime

# An environment of its own, for what the released code imports.
$(PARITY)/.installed: pyproject.toml
	@echo "making the environment $(PARITY) (a minute or two)"
	@$(PYTHON) -m venv $(PARITY)
	@$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		torch==2.13.0 torchvision==0.28.0 kornia==0.6.12
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed-runtime
	@$(PIP) --editable ".[torch$(CUDA:%=,%)]"
	@touch $@
