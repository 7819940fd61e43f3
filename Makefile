# make demo   set everything up, run the whole pipeline on real digits, end in a number and a picture
# make test   lint and every test
# make quick  lint and the tests that take no time, in under two minutes
# make lint   ruff and mypy
# make fmt    format the code, and mend what ruff can mend
# make coverage  which lines the quick tests reach, in out/coverage/
# make wheel  build the wheel, install it in an empty environment, run its demo there
# make docs   the documentation site, in site/
# make gpu    the tests and the benchmark that want an accelerator; says so where there is none
# make bench  measure everything again that is in benchmarks/results/
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH ?= torch==2.13.0

.PHONY: setup demo test quick lint fmt coverage wheel docs gpu bench clean
setup: $(VENV)/.installed-dev,hf,docs

# A torch that the base interpreter already has (a GPU build, say) is reused; otherwise the version
# that resolves to a small CPU build comes first, so that nothing pulls gigabytes of CUDA.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "coarlib needs Python 3.11 or newer; say make PYTHON=python3.11"; exit 2; }
	@if [ ! -x $(PY) ]; then \
	  if $(PYTHON) -c 'import torch' 2>/dev/null; then flag=--system-site-packages; fi; \
	  $(PYTHON) -m venv $$flag $(VENV); \
	fi
	@$(PY) -c 'import torch' 2>/dev/null || { echo "installing $(TORCH)"; $(PY) -m pip install -q $(TORCH); }
	@touch $@

$(VENV)/.installed-%: setup.py pyproject.toml | $(VENV)/.torch
	@echo "installing coarlib[$*]"; $(PY) -m pip install -q -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-report
	$(PY) -m estimate.demo

# Two halves side by side, a thread each: much of the first one waits for a scheduler, a browser, a
# compiler.
FIRST := tests/ablation tests/baselines tests/beton tests/cluster tests/docs tests/history \
  tests/interop tests/metagradient tests/path_kernel tests/report
test: export OMP_NUM_THREADS ?= 1
test: setup lint
	@$(PY) -m pytest $(ARGS) $(FIRST) >$(VENV)/first-half.log 2>&1 & first=$$!; \
	$(PY) -m pytest $(ARGS) $(FIRST:%=--ignore=%); second=$$?; \
	wait $$first; first=$$?; cat $(VENV)/first-half.log; \
	[ $$first = 0 ] && [ $$second = 0 ]

# The ground floors, the door, and which way imports point.
QUICK := tests/statistics tests/masks tests/scoring $(wildcard tests/test_*.py)
quick: setup lint
	$(PY) -m pytest $(ARGS) -m "not slow" $(QUICK)

coverage: setup
	$(PY) -m coverage run -m pytest $(ARGS) -m "not slow"
	$(PY) -m coverage report --skip-covered --sort=cover | tail -40
	$(PY) -m coverage html -q -d out/coverage

fmt: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

wheel:
	PYTHON=$(PYTHON) TORCH=$(TORCH) .ci/wheel

docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

gpu: setup
	$(PY) -m pytest $(ARGS) tests/gpu
	$(PY) benchmarks/gpu.py

bench: setup
	$(PY) benchmarks/run_all.py

clean:
	rm -rf $(VENV) out site build dist *.egg-info
