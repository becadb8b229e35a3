# Everything runs in .venv, or with STACK=onedl in .venv-onedl beside it; either is set up when it is missing or stale
# (tools/dev/setup_env.sh).
#   STACK=openmmlab|onedl   the libraries; by default openmmlab, or onedl where there is only Python 3.12
#   PYTHON=python3.11       the Python that .venv is made of
#   VENV=.venv              where it lies
has_onedl = $(wildcard .venv/lib/python*/site-packages/onedl_mmengine-*.dist-info)
VENV ?= $(if $(filter onedl,$(STACK)),$(if $(has_onedl),.venv,.venv-onedl),.venv)
PY := $(VENV)/bin/python
export VENV STACK PYTHON

.DEFAULT_GOAL := help
.PHONY: help install demo test lint docs clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install:  ## set up .venv (10 to 25 minutes the first time: mmcv is built from source)
	@tools/dev/setup_env.sh

demo: install  ## distil a small detector on made-up pictures, with a table at the end (8 minutes at most)
	$(PY) tools/demo.py

test: install  ## run all tests, the slow ones too (15 minutes at most); ARGS='-m "not slow"' for the quick ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal $(ARGS)

lint: install  ## ruff, as linter and as formatter
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

docs: install  ## build the documentation into docs/_build/html; a warning is an error
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

clean:  ## remove what the targets made, except .venv and work_dirs
	rm -rf build dist docs/_build *.egg-info mmsokd/.mim .pytest_cache .ruff_cache .hypothesis
	find mmsokd tests tools configs -name __pycache__ -type d -prune -exec rm -rf {} +
