# make run      sets up, asks Imp about the sample pictures, executes every notebook; CPU=1 takes torch's build without CUDA
# make test     sets up, checks style, layers and types, runs the quick tests and one notebook, on all CPUs with one thread each
# make test-all the same with all tests and every notebook; those of minutes, and the translated ones, in part
# make outputs  runs the English notebooks, keeps what they show in their files, and makes the translated ones anew
# make matrix   runs all tests on the pinned stack and on the newest one, each with its own Python
# make gpu      on a GPU: CUDA tests, notebooks, benchmark, a report below runs/gpu; without one: what it would do
# make classroom fills the folder classroom/ for a USB stick, from which others install without a network
# make resolve  asks pip what it would install: on each Python, and in Google Colab (needs the network)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON_NEWEST ?= python3.13
VENV_NEWEST ?= .venv-newest
# PyTorch's own builds without CUDA, which spare a Linux machine without a GPU several GB: make run CPU=1
TORCH_CPU := https://download.pytorch.org/whl/cpu
# Modules are compiled when they are first imported, and kept where .venv can be written: to compile all of them takes
# nearly as long as to install them. Where PYTHONDONTWRITEBYTECODE is set, as in some containers, nothing would be kept, and each
# of many processes would compile them again.
PIP_INSTALL := install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=
# Seconds for one cell of a notebook: a busy machine takes many times as long as a quiet one.
CELL := 1800
# For make classroom: the folder, and for which systems and Pythons, such as SYSTEMS="linux macos" PYTHONS="3.12 3.13".
CLASSROOM ?= classroom
SYSTEMS ?= linux windows macos
PYTHONS ?= 3.11
READY_NEWEST := $(VENV_NEWEST)/.ready

.PHONY: run test test-all outputs matrix gpu classroom resolve parity verify-real clean

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "imp-kit: the pinned packages are for Python 3.11 to 3.13; try: make run PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(if $(filter 1,$(CPU)),$(BIN)/pip $(PIP_INSTALL) --constraint constraints.txt --index-url $(TORCH_CPU) torch torchvision)
	$(BIN)/pip $(PIP_INSTALL) --constraint constraints.txt --requirement requirements.txt --editable ".[test]"
	touch $@

$(READY_NEWEST): constraints-newest.txt pyproject.toml
	$(PYTHON_NEWEST) -m venv $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/pip $(PIP_INSTALL) --constraint constraints-newest.txt --editable ".[test]"
	touch $@

run: $(READY)
	$(BIN)/python -m imp_kit ask images/bus.png "What are the colors of the bus in the image?"
	$(BIN)/python -m imp_kit caption images/door.png
	$(BIN)/python -m imp_kit ask images/door.png "What is the person holding?"
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=$(CELL) notebooks/*.ipynb

test: QUICK := -m "not slow"
test: test-all

# The types are checked beside the tests, as mypy uses one CPU; what it finds is printed after them.
test-all: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy > $(VENV)/types.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(QUICK) tests; tests=$$?; \
	wait $$types || { cat $(VENV)/types.log; exit 1; }; exit $$tests

outputs: $(READY)
	$(BIN)/python tests/tools/notebook_outputs.py
	$(BIN)/python tests/tools/translate.py

matrix: PYTHON := python3.11
matrix: $(READY) $(READY_NEWEST)
	$(BIN)/python tests/tools/matrix.py $(BIN)/python $(VENV_NEWEST)/bin/python

# On the newest packages: the older transformers compiles no steps to compare with. ARGS="--without notebooks" chooses.
gpu: $(READY_NEWEST)
	$(VENV_NEWEST)/bin/python tests/tools/gpu.py $(ARGS)

classroom: $(READY)
	$(BIN)/python tests/tools/classroom.py $(CLASSROOM) --systems $(SYSTEMS) --pythons $(PYTHONS) --torch-cpu $(TORCH_CPU)

resolve: $(READY)
	$(BIN)/python tests/tools/resolve.py $(PYTHON_NEWEST)

parity: $(READY)
	$(BIN)/python tests/tools/parity.py

# Runs code from the hub, so it asks for make verify-real TRUST_REMOTE_CODE=1; ARGS="imp-v1-3b --dtype fp32" chooses.
verify-real: $(READY)
	$(BIN)/python tests/tools/verify_real.py $(if $(filter 1,$(TRUST_REMOTE_CODE)),--trust-remote-code) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV_NEWEST)
