# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TRACKING := .venv/.tracking
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test suite test-cluster test-long lint venv clean

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

test: $(READY)
	@$(MAKE) --no-print-directory --jobs lint suite

# A file's tests are run by one worker, which then makes once what they share.
suite: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not cluster and not long"

# Slurm clusters that they bring up on this machine (as root, with Debian's slurm-wlm, munge and iproute2), sweeps by Ray,
# pages in a browser (chromium), and trainings that are killed, starved and spoilt. tests/conftest.py has the order of
# the files. It also installs tracking libraries, which no other target needs.
test-cluster: $(READY) $(TRACKING)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m cluster

# Whole trainings, each engine by each number of processes, bad input by the hundred; then benchmarks, alone on the cores.
test-long: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m long --ignore tests/benchmarks
	@$(BIN)/python -m pytest -m long tests/benchmarks

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/codespell
	@$(BIN)/mypy --no-error-summary
	@contracts=$$($(BIN)/lint-imports --no-logo --no-cache) || { echo "$$contracts"; exit 1; }

venv: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@echo "setting up .venv (a minute or two) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "distvae needs Python 3.10 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv || { echo "no venv: on Debian, apt install python3-venv" >&2; exit 1; }
	@DS_BUILD_OPS=0 $(INSTALL) --editable '.[test,deepspeed,explore,probe,report,sweep]'
	@touch $@

$(TRACKING): $(READY)
	@echo "adding tracking libraries to .venv (half a minute) …"
	@$(INSTALL) --editable '.[tracking]'
	@touch $@

clean:
	rm -rf .venv runs
