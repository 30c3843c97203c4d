# Each target makes what it needs: the environment once, and again when its files change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := -m pytest --numprocesses auto --maxprocesses 8
OUTSIDE := build/outside

.PHONY: gpt2 paper gallery test test-all test-kernels test-loggers test-oldest test-zoo coverage lint types docs docs-serve release wheel clean

gpt2: $(VENV)/recipes.stamp  ## train a small GPT-2 and measure its geometry; ARGS='--help' for more
	$(BIN)/python recipes/gpt2.py $(ARGS)

paper: $(VENV)/recipes.stamp  ## run all recipes at their small sizes and write docs/results.md
	OMP_NUM_THREADS=1 $(BIN)/python recipes/paper.py $(ARGS)

gallery: $(VENV)/recipes.stamp  ## train what the gallery lacks, and make its pages; ARGS='--help' for more
	OMP_NUM_THREADS=1 $(BIN)/python recipes/gallery.py $(ARGS)

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

# The first variable silences what the theme says of its own future.
MKDOCS := NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs
docs: $(VENV)/docs.stamp  ## the documentation site, in build/site; anything wrong with it is an error
	$(MKDOCS) build --strict

docs-serve: $(VENV)/docs.stamp  ## the same while it is written, at http://127.0.0.1:8000
	$(MKDOCS) serve

release: $(VENV)/dev.stamp  ## build sdist and wheel into dist/ and check them; uploads nothing
	rm -rf build dist
	$(BIN)/python .ci/distributions.py
	$(BIN)/python -m twine check --strict dist/*
	DISTRIBUTIONS=dist $(BIN)/python -m pytest -q tests/suite/test_distributions.py

wheel: release  ## install the wheel elsewhere, test it outside the tree
	rm -rf $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --constraint constraints.txt pytest pytest-xdist hypothesis "$$(ls dist/*.whl)[tensorboard]"
	mkdir -p $(OUTSIDE)
	cp -r tests pyproject.toml $(OUTSIDE)
	cd $(OUTSIDE) && $(abspath $(VENV)-wheel)/bin/python $(PYTEST) tests

clean:
	rm -rf build dist .cache *.egg-info $(VENV) $(VENV)-wheel $(VENV)-oldest

$(VENV)/%.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "expected Python >= 3.11, got $$($(PYTHON) --version 2>&1 || :). Try: make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV), once; this takes a few minutes"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
