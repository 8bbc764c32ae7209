# Everything that the project needs goes into .venv; nothing else on the machine is changed.
#   make quickstart   set up, train a small detector on generated pictures, show the result (a few minutes)
#   make test         set up, then lint, types and tests
#   make sanitize     the CUDA kernels on the emulated device under sanitizers, and bugs planted to be caught (five minutes)
#   make stress       random and adversarial cases of the operations, ten thousand of each (about four minutes)
#   make wheelhouse   for a machine with a GPU and without a network: wheels for its Python (PYTHON_VERSION=3.12)
#   make gpu-check    on that machine: do the CUDA kernels run, are they right, are they fast (nine minutes, resumable)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart test lint types pytest sanitize fuzz stress docs format wheelhouse gpu-check clean

quickstart: $(VENV)/.installed
	$(BIN)/python tools/train_net.py --config-file configs/quickstart.yaml
	@echo "Next: open the report named above; your own data: README.md, 'Your own data'."

test: lint types pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy detkit

# A process for each core (at most 8: each holds a torch) and one thread in each: tests are small. A file's tests stay together.
pytest: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# No GPU is needed: csrc/README.md, "The emulated device".
sanitize: $(VENV)/.installed
	DETKIT_SANITIZERS=1 $(BIN)/python -m pytest tests/emulation -v

# Damaged annotation files and pictures, a hundred times as many as `make test` tries: about half an hour.
fuzz: $(VENV)/.installed
	DETKIT_FUZZ_ROUNDS=100000 $(BIN)/python -m pytest tests/data/test_fuzz.py

# Every kernel against the reference, on cases from a seed: `make test` tries the first of them.
stress: $(VENV)/.installed
	DETKIT_STRESS_ROUNDS=10000 $(BIN)/python -m pytest tests/ops/test_adversarial.py

docs: $(VENV)/.installed
	$(BIN)/python tools/write_config_docs.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All but torch: wheelhouse/ is copied to the target with the checkout. By default for the Python that is used here.
wheelhouse: $(VENV)/.installed
	$(BIN)/python benchmarks/wheelhouse.py $(if $(PYTHON_VERSION),--python $(PYTHON_VERSION))

# PYTHON has a torch with CUDA, of the system or of an environment; .venv-gpu sees it, and nothing is fetched.
# The same command goes on where it stopped; GPU_CHECK has options, such as "--device cpu" for a dry run.
gpu-check:
	$(PYTHON) benchmarks/gpu_venv.py
	.venv-gpu/bin/python benchmarks/gpu_check.py $(GPU_CHECK)

# torch first, pinned by constraints.txt; the rest then builds against it without a build environment of its own.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch "setuptools>=77" wheel ninja pybind11 numpy
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[dev]"
	$(BIN)/python -m detkit.env
	touch $@

clean:
	rm -rf $(VENV) .venv-gpu wheelhouse build dist *.egg-info detkit/*.so
