# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && { echo $$p; break; }; done)
NEWEST_PYTHON ?= $(shell for p in python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python) \
	$(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
NEWEST_VENV = .venv-newest
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

# One package: make test FOR=merging
TESTS = $(if $(FOR),tests/$(FOR),tests)
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-all test-newest coverage measure-coverage lint docs bench clean

demo: $(VENV)/.installed ## train a team in about two minutes and write a report
	$(VENV)/bin/jaxmethods run configs/commformer/demo.yaml --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/.installed-test ## the suite without its slow tests
	$(PYTEST) -m "not slow" $(TESTS)

test-slow: $(VENV)/.installed-test ## processes, kill -9, simulators, big arrays, whole sweeps
	$(PYTEST) -m slow $(TESTS)

test-all: test test-slow ## the whole suite

test-newest: ## the suite on the newest Python and jax
	@test -n "$(NEWEST_PYTHON)" || { echo "no Python 3.12 or 3.13 found; set NEWEST_PYTHON"; exit 2; }
	$(MAKE) test VENV=$(NEWEST_VENV) PYTHON=$(NEWEST_PYTHON) \
		JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax-newest

coverage: ## lines of jaxmethods/ that the whole suite runs, on the newest Python; fails below 90 %
	@test -n "$(NEWEST_PYTHON)" || { echo "no Python 3.12 or 3.13 found; set NEWEST_PYTHON"; exit 2; }
	$(MAKE) measure-coverage VENV=$(NEWEST_VENV) PYTHON=$(NEWEST_PYTHON) \
		JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax-newest

measure-coverage: $(VENV)/.installed-coverage
	$(PYTEST) --cov --cov-report=term $(TESTS)

lint: $(VENV)/.installed-lint ## style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.installed-docs ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo 'open site/index.html, or serve it, for its search: python3 -m http.server -d site'

bench: $(VENV)/.installed ## all benchmarks
	$(VENV)/bin/python -m benchmarks

clean: ## remove environments, caches and build products, never runs/
	rm -rf .venv .venv-newest .cache build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'installing into $(VENV) (about a minute)'
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'installing into $(VENV) (about a minute)'
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.installed-coverage: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[coverage]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-lint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[lint]'
	@touch $@
