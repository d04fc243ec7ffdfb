# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-cluster lint venv clean

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

test: $(READY) lint
	@$(BIN)/python -m pytest -n 2 -m "not cluster and not long"

# The long tests, and those on a Slurm cluster that they bring up on this machine: as root, with slurm-wlm, munge and
# iproute2 (Debian).
test-cluster: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m long
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m cluster

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

venv: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@echo "setting up .venv (a minute or two) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "distvae needs Python 3.10 or newer: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv || { echo "no venv: on Debian, apt install python3-venv" >&2; exit 1; }
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --editable '.[test,deepspeed,report,sweep]'
	@touch $@

clean:
	rm -rf .venv runs
