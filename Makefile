# Each target makes what it needs: the environment once, and again when its files change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := -m pytest --numprocesses auto --maxprocesses 8
OUTSIDE := build/outside

.PHONY: gpt2 paper test test-all test-kernels test-loggers test-oldest test-zoo coverage lint types wheel clean

gpt2: $(VENV)/recipes.stamp  ## train a small GPT-2 and measure its geometry; ARGS='--help' for more
	$(BIN)/python recipes/gpt2.py $(ARGS)

paper: $(VENV)/recipes.stamp  ## run all recipes at their small sizes and write docs/results.md
	OMP_NUM_THREADS=1 $(BIN)/python recipes/paper.py $(ARGS)

test: $(VENV)/dev.stamp  ## the everyday tests
	$(BIN)/python $(PYTEST) $(ARGS)

test-all: $(VENV)/dev.stamp  ## the slow ones too; those marked gpu where there is a CUDA device
	$(BIN)/python $(PYTEST) -m 'not zoo' $(ARGS)

# Modules under test: those of the kernels, and of what runs them.
KERNEL_TESTS ?= tests/kernels
test-kernels: $(VENV)/dev.stamp $(VENV)/kernels.stamp  ## Triton's kernels, interpreted on the CPU
	TRITON_INTERPRET=1 $(BIN)/python $(PYTEST) $(KERNEL_TESTS) $(ARGS)

test-loggers: $(VENV)/dev.stamp $(VENV)/loggers.stamp  ## W&B, MLflow and Comet, without a network
	$(BIN)/python $(PYTEST) -m 'not zoo' tests/callbacks/test_services.py $(ARGS)

test-zoo: $(VENV)/zoo.stamp  ## networks of transformers and torch_geometric; timm's where it is installed
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m zoo tests/suite/test_zoo.py $(ARGS)

# torch: no index that we reach has old builds for the CPU, and the compiler of a new one needs more
# of typing_extensions than it says.
KEEP ?= torch typing_extensions
test-oldest: $(VENV)/dev.stamp  ## with the lowest versions admitted, but for those in KEEP
	mkdir -p build
	$(BIN)/python .ci/oldest.py $(KEEP) > build/oldest.txt
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint build/oldest.txt pytest pytest-xdist hypothesis --editable '.[cli,tensorboard]'
	JSONARGPARSE_DEPRECATION_WARNINGS=off $(VENV)-oldest/bin/python $(PYTEST) tests $(ARGS)

coverage: $(VENV)/dev.stamp  ## what no test reaches; takes twice as long
	$(BIN)/python $(PYTEST) -m 'not zoo' --cov=lightning_linf --cov-report=term-missing $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy
	$(BIN)/mypy recipes

wheel: $(VENV)/dev.stamp  ## build the wheel, install it elsewhere, test it outside the tree
	rm -rf build dist $(VENV)-wheel
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --constraint constraints.txt pytest pytest-xdist hypothesis "$$(ls dist/*.whl)[tensorboard]"
	mkdir -p $(OUTSIDE)
	cp -r tests pyproject.toml $(OUTSIDE)
	cd $(OUTSIDE) && $(abspath $(VENV)-wheel)/bin/python $(PYTEST) tests

clean:
	rm -rf build dist .cache *.egg-info $(VENV) $(VENV)-wheel

$(VENV)/%.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python >= 3.11, got $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV), once; this takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
