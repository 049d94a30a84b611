# The commands of a checkout (docs/running.md). Everything goes into .venv; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin

# The first of these that runs and can make environments; `make demo PYTHON=/path/to/python` names another. Python 3.12
# and newer come first, with or without pyenv: only they get a JAX whose convolutions use a CPU's matrix units.
PYENV := $(HOME)/.pyenv/versions
PYTHON ?= $(shell for python in python3.13 $(wildcard $(PYENV)/3.13.*/bin/python3.13) python3.12 \
	$(wildcard $(PYENV)/3.12.*/bin/python3.12) python3.11 $(wildcard $(PYENV)/3.11.*/bin/python3.11) python3 python; do \
	$$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# The newest CUDA that the NVIDIA driver runs, as an extra of pyproject.toml; `make demo CUDA=` stays on the CPU.
CUDA ?= $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[^|]*Version: *\([0-9][0-9]*\).*/\1/p' \
	| awk '$$1 >= 13 { print "cuda13" } $$1 == 12 { print "cuda12" }')

# Tests at a time; each may take two gigabytes.
WORKERS ?= 2

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint docs bench parity torchax gpu gpu-carried gpu-dry-run clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-11s  %s\n' "$$name" "$$text"; done

install: $(VENV)/.installed ## the environment in .venv, with the tools for development

demo: $(VENV)/.installed-runtime ## a teacher, a student without data, the table: a few minutes on a CPU
	$(BIN)/cudfkd --config=digits --config.compute_dtype=auto --workdir=runs/digits

test: $(VENV)/.installed ## the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder -m "not slow"

test-all: $(VENV)/.installed $(VENV)/.installed-docs ## these and the campaigns: kills, damaged files, long runs, nine methods twice
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.installed ## style, format, layers and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-runtime ## speed of the steps, beside the ceilings of this machine
	$(BIN)/python scripts/benchmark.py --config=configs/digits.py

# Checkouts of the released code: ljrprocc/DataFree, and if given kuluhan/PRE-DFKD, polo5's zero-shot transfer,
# ljrprocc/DFKD and zju-vipa/Fast-Datafree.
RELEASE ?=
PREDFKD ?=
ZSKT ?=
ADADFKD ?=
FASTDFKD ?=
PARITY := .venv-parity

parity: $(PARITY)/.installed ## the released code in RELEASE beside ours, quantity by quantity, on a CPU
	$(if $(RELEASE),,$(error name a checkout of ljrprocc/DataFree: make parity RELEASE=DataFree))
	$(PARITY)/bin/python -W ignore scripts/check_parity.py --release=$(RELEASE) $(PREDFKD:%=--pre-dfkd=%) \
		$(ZSKT:%=--zero-shot=%) $(ADADFKD:%=--adadfkd=%) $(FASTDFKD:%=--fast-datafree=%)

# An environment of its own, as torchax takes few versions of PyTorch; timm and torchvision for eight families of networks.
TORCHAX := .venv-torchax

torchax: $(TORCHAX)/.installed ## the tests of teachers in PyTorch, with torchax, timm and torchvision
	$(TORCHAX)/bin/python -m pytest tests/models/test_torch_module.py tests/models/test_torch_families.py \
		tests/runs/test_torch_teacher.py

# What `make gpu` reads and writes; GPU_MINUTES=9 ends it in time, to be continued by the same command.
DATA ?= data
SOURCE ?= archive
OUT ?= runs/gpu
GPU_MINUTES ?= 0

gpu: $(VENV)/.installed-torch ## on a GPU: checks, speed beside PyTorch's, whole runs on CIFAR-10 in DATA
	$(BIN)/python scripts/gpu --minutes=$(GPU_MINUTES) --source=$(SOURCE) --dir=$(DATA) --out=$(OUT) --carried=$(CARRIED)

# What travels to a GPU that has no network but JAX, Flax, Optax, Orbax and PyTorch: what they lack, as wheels, and what
# a CPU can compute before. `cifar10_jpeg.npz` may be put beside them.
CARRIED ?= .gpu
GPU_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3.12)
GPU_JAX ?= 0.11.2
LACKING := clu ml-collections tensorflow-datasets array_record dm-tree docstring_parser immutabledict promise \
	simple-parsing tensorflow-metadata termcolor toml tensorboardX importlib_resources wrapt safetensors
DRY := $(CARRIED)/dry-run

gpu-carried: $(CARRIED)/reference.npz ## what travels to a GPU without a network, in .gpu
	@du -sh $(CARRIED)/wheels $(CARRIED)/*.npz

$(CARRIED)/wheels: Makefile | $(DRY)/bin/pip
	$(DRY)/bin/pip wheel --quiet --no-deps --wheel-dir $@ $(LACKING)
	@touch $@

$(CARRIED)/site: $(CARRIED)/wheels
	rm -rf $@
	$(DRY)/bin/pip install --quiet --no-index --no-deps --target $@ $(CARRIED)/wheels/*.whl

$(CARRIED)/reference.npz: $(CARRIED)/site
	PYTHONPATH=$(CARRIED)/site:. $(DRY)/bin/python scripts/gpu --prepare --carried=$(CARRIED)

# A fresh environment with what such a machine has; the wheels go where they go there, found without a network.
$(DRY)/bin/pip:
	$(GPU_PYTHON) -m venv $(DRY)
	$(DRY)/bin/pip install --quiet jax==$(GPU_JAX) flax optax orbax-checkpoint scikit-learn matplotlib pandas \
		tensorboard tqdm psutil requests pyarrow

gpu-dry-run: $(CARRIED)/site ## on a CPU: the whole program in small, stopped in the middle and taken up again
	rm -rf $(DRY)/out
	-PYTHONPATH=$(CARRIED)/site:. $(DRY)/bin/python scripts/gpu --smoke --carried=$(CARRIED) --out=$(DRY)/out --minutes=4
	PYTHONPATH=$(CARRIED)/site:. $(DRY)/bin/python scripts/gpu --smoke --carried=$(CARRIED) --out=$(DRY)/out

.DELETE_ON_ERROR:

clean: ## remove the environment and the caches of the tools; runs stay
	rm -rf $(VENV) $(VENV)-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cudfkd_jax configs examples scripts tests -name __pycache__ -prune -exec rm -rf {} +

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

# An environment of its own, for what the released code imports; on Python 3.11, for which PyTorch comes without CUDA.
PARITY_PYTHON ?= $(firstword $(wildcard $(PYENV)/3.11.*/bin/python3.11) $(shell command -v python3.11) $(PYTHON))
$(PARITY)/.installed: pyproject.toml
	@echo "making the environment $(PARITY) with $(PARITY_PYTHON) (a minute or two)"
	@$(PARITY_PYTHON) -m venv $(PARITY)
	@$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		torch==2.13.0 torchvision==0.28.0 kornia==0.6.12
	@touch $@

$(TORCHAX)/.installed: pyproject.toml
	@echo "making the environment $(TORCHAX) with $(PARITY_PYTHON) (a few minutes)"
	@$(PARITY_PYTHON) -m venv $(TORCHAX)
	@$(TORCHAX)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,torchax]" \
		torch==2.13.0 torchvision==0.28.0 timm
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-runtime
	@$(PIP) --editable ".[docs$(CUDA:%=,%)]"
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed-runtime
	@$(PIP) --editable ".[torch$(CUDA:%=,%)]"
	@touch $@
