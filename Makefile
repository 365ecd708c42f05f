# Everything from nothing: `make quickstart` and `make test` make .venv, install the versions of constraints.txt, and run.
VENV ?= .venv
PYTHON ?= python3
CORE := $(VENV)/.core
TEST := $(VENV)/.test
UV := build/uv/bin/uv
INSTALL = PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test pytest lint fonts lock test-lowest test-newest clean

quickstart: fonts $(CORE)
	$(VENV)/bin/glyphlm quickstart --out runs/quickstart

# Together, because pyright keeps one core busy for two minutes.
test: $(TEST)
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: $(TEST)
	$(VENV)/bin/python -m pytest -q -n auto --dist loadfile --durations=10

lint: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

fonts:
	@sh scripts/unifont.sh

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(TEST): pyproject.toml constraints.txt | $(VENV)/bin/python
	@sh scripts/unifont.sh --required
	$(INSTALL) -e '.[test,lint]'
	touch $(CORE) $@

# The versions of everything, for every supported Python and system. What is locked stays; UPGRADE=--upgrade takes the newest.
UPGRADE ?=
lock: $(UV)
	$(UV) pip compile pyproject.toml --constraints constraints.in --all-extras --universal --python-version 3.11 $(UPGRADE) \
		--no-config --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet \
		--output-file constraints.txt

# The tests with the lowest versions that pyproject.toml allows, or the newest. TORCH=2.13.0 takes that torch instead (where only
# its CPU build is at hand, in a folder of PIP_FIND_LINKS), TESTS="tests/test_hf.py .." runs fewer tests.
TESTS ?= tests
test-lowest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-lowest test-newest: $(UV)
	@sh scripts/unifont.sh --required
	$(UV) venv --quiet --clear --python $(PYTHON) build/$@
	UV_FIND_LINKS=$$PIP_FIND_LINKS $(UV) pip install --quiet --python build/$@ --resolution $(RESOLUTION) \
		--compile-bytecode -e '.[test]' $(addprefix torch==,$(TORCH))
	@$(UV) pip list --quiet --python build/$@ --format freeze | \
		grep -iE '^(torch|transformers|tokenizers|datasets|peft|jsonargparse|trl|numpy)=='
	build/$@/bin/python -m pytest -q -n auto --dist loadfile $(TESTS)

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

clean:
	rm -rf $(VENV) runs build dist *.egg-info
