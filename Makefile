# Everything from nothing: `make quickstart` and `make test` make .venv, install, and run.
VENV ?= .venv
PYTHON ?= python3
READY := $(VENV)/.ready

.PHONY: quickstart test lint fonts clean

quickstart: $(READY) fonts
	$(VENV)/bin/glyphlm quickstart --out runs/quickstart

test: $(READY) fonts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -q -n auto --dist loadfile --durations=10

lint: $(READY)
	$(VENV)/bin/ruff check .

fonts:
	@sh scripts/unifont.sh

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
