# make train | make test | make install | make lint: a fresh clone needs nothing else.
PYTHON ?= python3
CONFIG ?= configs/sparseswin_cls.py
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -qq --no-input --disable-pip-version-check \
          --constraint requirements/constraints.txt
SOURCES := tokensparse tests tools configs docs

# One stamp per layer of the installation; it is renewed when a file that it depends on is newer.
VENV_STAMP  := $(VENV)/.stamp-venv
TRAIN_STAMP := $(VENV)/.stamp-train
DEV_STAMP   := $(VENV)/.stamp-dev
MM_STAMP    := $(VENV)/.stamp-mm
PINS        := requirements/constraints.txt setup.py

# Where there is a GPU but no nvcc, mmcv's CUDA ops cannot be compiled: hide the GPU and build the CPU ops.
MMCV_ENV := MMCV_WITH_OPS=1 $(if $(shell command -v nvcc 2>/dev/null),,CUDA_VISIBLE_DEVICES=)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test install lint types

help:
	@echo "make train                 install what training needs into $(VENV), then train $(CONFIG)"
	@echo "make train CONFIG=...      the same with another config"
	@echo "make test                  install everything (mmcv is built from source), then lint, types and all tests"
	@echo "make install               install everything and run nothing"
	@echo "make lint                  ruff, import-linter and mypy"
	@echo "PYTHON=python3.12          the Python (3.10 or newer) that $(VENV) is made with"

train: $(TRAIN_STAMP)
	@echo "==> Training $(CONFIG): the embedded digits take a few minutes on 2 CPU cores"
	$(PY) tools/train.py $(CONFIG)

test: install lint
	@echo "==> All tests (several minutes on 2 CPU cores)"
	$(PY) -m pytest

install: $(TRAIN_STAMP) $(DEV_STAMP) $(MM_STAMP)

lint: $(DEV_STAMP)
	@echo "==> Style, import rules and types (under a minute)"
	$(VENV)/bin/ruff check $(SOURCES) setup.py
	$(VENV)/bin/ruff format --check $(SOURCES) setup.py
	$(VENV)/bin/lint-imports
	$(PY) -m mypy

$(VENV_STAMP):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "No '$(PYTHON)' here. Name a Python 3.10 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1); tokensparse needs Python 3.10 or newer:" \
	         "make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "==> Making $(VENV) with $$($(PYTHON) --version 2>&1) (a few seconds)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(TRAIN_STAMP): $(VENV_STAMP) $(PINS) $(foreach n,build runtime engine demo,requirements/$(n).txt)
	@echo "==> Installing torch, timm, mmengine and tokensparse (1 to 3 minutes, about 5 GB on disk)"
	@$(PIP) -r requirements/build.txt
	@$(PIP) -r requirements/runtime.txt -r requirements/engine.txt -r requirements/demo.txt
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(PY) tools/check_install.py
	@touch $@

$(DEV_STAMP): $(TRAIN_STAMP) requirements/tests.txt requirements/export.txt
	@echo "==> Installing the tools of lint and tests, and ONNX (seconds)"
	@$(PIP) -r requirements/tests.txt -r requirements/export.txt
	@touch $@

# A wheel of mmcv without ops, or one compiled for another torch, may lie in pip's cache: then build it anew.
$(MM_STAMP): $(DEV_STAMP) $(foreach n,mm det seg,requirements/$(n).txt)
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "mmcv is compiled and needs a C++ compiler. On Debian and Ubuntu: apt-get install build-essential" >&2; exit 1; }
	@echo "==> Building mmcv from source (5 to 10 minutes on 2 cores; seconds where pip has kept the wheel)"
	@$(MMCV_ENV) $(PIP) --no-build-isolation onedl-mmcv
	@$(PY) -c 'import cv2' 2>/dev/null || \
	  { echo "==> opencv-python needs libGL, which is not here: taking its headless build (seconds)"; \
	    $(PIP) --force-reinstall --no-deps opencv-python-headless; }
	@$(PY) tools/check_install.py --mmcv >/dev/null 2>&1 || \
	  { echo "==> The mmcv that is there does not work: building it anew (5 to 10 minutes)"; \
	    $(MMCV_ENV) $(PIP) --no-build-isolation --no-cache-dir --no-deps --force-reinstall onedl-mmcv; }
	@$(PY) tools/check_install.py --mmcv
	@echo "==> Installing mmdet, mmseg and what they need (under a minute)"
	@$(PIP) --no-build-isolation -r requirements/mm.txt -r requirements/det.txt -r requirements/seg.txt
	@$(PY) tools/check_install.py --mmcv --mmdet --mmseg
	@touch $@
