# Two commands do all the set-up: `make course` runs every notebook, `make test` runs the tests, JOBS at a time with one
# thread each: most tests are too small to use a second one. HASHED=1 installs packages of known checksums alone (Linux).
PYTHON ?= python3.11
VENV   ?= .venv
JOBS   ?= 2
HASHED ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

.PHONY: course fast test recheck site lab doctor clean

course: $(READY)
	$(BIN)/python -m gentta_utils run

fast: $(READY)
	$(BIN)/python -m gentta_utils run --fast

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

recheck: $(READY)
	$(BIN)/python -m gentta_utils recheck

# the site, from the committed notebooks, the cards and the docstrings; nothing is executed
site: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -b html docs docs/_build

lab: $(READY)
	GENTTA_INTERACTIVE=1 $(BIN)/jupyter lab notebooks

doctor: $(READY)
	$(BIN)/python -m gentta_utils doctor

clean:
	rm -rf $(VENV) runs docs/_build

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(HASHED),$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-hashed.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@
