# On a fresh machine, `make demo` and `make test` are all the set-up. Bytecode is made when a module is imported: of
# all that is installed it takes minutes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
READY_TEST := $(VENV)/.installed-test

.PHONY: demo test test-slurm lint types clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -e .
	touch $@

# torch and peft are for the parity tests alone; the pinned release first, where it can be had as a CPU build.
$(READY_TEST): $(READY)
	$(BIN)/pip install -q --no-compile torch==2.13.0 || true
	$(BIN)/pip install -q --no-compile -e '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/python -m experiments.demo --workdir=runs/demo

test: $(READY_TEST)
	$(BIN)/python -m pytest

# As root, on Debian after: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
test-slurm: $(READY_TEST)
	TEST_SLURM=1 $(BIN)/python -m pytest -n 0 -rs tests/slurm

lint: $(READY_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_TEST)
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) runs build *.egg-info
