# make run    set up, then train support_templates at its quickest honest size
# make test   set up, then the default tests; make test-all adds the slow ones
# make lint   formatting, lint, types, import directions

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Exact pins and no resolver: the same files on every machine, and nothing to walk back from.
INSTALL = $(BIN)/pip install --no-deps --disable-pip-version-check
# Where torch's builds are: for GPUs the one that the driver supports, say .../whl/cu130; empty: where
# pip looks anyway. It is kept with the environment. The lock has what the build for processors needs;
# what another needs besides comes along.
TORCH_INDEX ?= $(shell cat $(VENV)/torch-index 2>/dev/null || echo https://download.pytorch.org/whl/cpu)
FROM_INDEX = --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
TORCH = $$(grep '^torch==' requirements.lock)
OR_SHOW = >>$(VENV)/setup.log 2>&1 || (tail -n 20 $(VENV)/setup.log; exit 1)

.PHONY: run test test-all lint setup setup-dev lock docs clean FORCE

run: setup
	@$(BIN)/heliostat train support_templates size=quick

test: setup-dev
	@$(BIN)/pytest -m "not slow and not gpu"

test-all: setup-dev $(VENV)/.done-models
	@$(BIN)/pytest -m "not gpu"

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/platform/test_layout.py -m "not slow"

setup: $(VENV)/.done

setup-dev: $(VENV)/.done-dev

$(VENV)/torch-index: FORCE
	@mkdir -p $(VENV)
	@echo '$(TORCH_INDEX)' | cmp -s - $@ || echo '$(TORCH_INDEX)' >$@

$(VENV)/.done: requirements.lock pyproject.toml $(VENV)/torch-index
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| (echo "Heliostat needs Python 3.11: make PYTHON=/path/to/python3.11 run" && exit 2)
	@$(INSTALL) setuptools==$$(sed -n 's/^setuptools==//p' requirements.lock) wheel==$$(sed -n 's/^wheel==//p' requirements.lock) $(OR_SHOW)
	@grep -v '^torch==' requirements.lock >$(VENV)/others.lock
	@$(INSTALL) --no-build-isolation -r $(VENV)/others.lock $(OR_SHOW)
	@$(INSTALL) --force-reinstall $(FROM_INDEX) $(TORCH) $(OR_SHOW)
	@$(BIN)/pip install --disable-pip-version-check $(FROM_INDEX) $(TORCH) $(OR_SHOW)
	@$(INSTALL) --no-build-isolation -e . $(OR_SHOW)
	@$(BIN)/python -c 'import torch; print("torch", torch.__version__)'
	@touch $@

$(VENV)/.done-dev: $(VENV)/.done requirements-dev.lock
	@$(INSTALL) -r requirements-dev.lock $(OR_SHOW)
	@touch $@

$(VENV)/.done-models: $(VENV)/.done requirements-models.lock
	@$(INSTALL) -r requirements-models.lock $(OR_SHOW)
	@touch $@

lock: setup-dev
	@$(BIN)/python .ci/lock.py $(TORCH_INDEX)

docs:
	@$(BIN)/python .ci/render_docs.py

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
