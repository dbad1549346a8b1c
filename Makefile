# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# PYTHON may name any interpreter from 3.11 to 3.13; the environment is made once and again only when the lock changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICKSTART := runs/emoji_quickstart

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint docs format bench bench-check systems numbers lock vocabulary emoji clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

install: $(STAMP)  ## make .venv from requirements.lock (the other targets do it when needed)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "mmformer needs Python 3.11 to 3.13, but $(PYTHON) is %d.%d: run make PYTHON=python3.12" % v)'
	@echo "Installing into $(VENV) (about 5 GB, once; one to three minutes) ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile -r requirements.lock
	@# On all cores, where pip has one. Some packages bring files that are no Python for this version.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

quickstart: $(STAMP)  ## train an image-text model on the embedded emoji (5 to 8 minutes on 2 cores) and use it
	$(BIN)/mmformer fit --config configs/runs/emoji_quickstart.yaml --output $(QUICKSTART) --overwrite

test: $(STAMP)  ## the fast suite
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(STAMP)  ## the long checks as well
	$(BIN)/python -m pytest -q -n 2 -m slow

lint: $(STAMP)  ## ruff, the strict type checker, the import-layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py -k "not runs_without_lightning"

docs: $(STAMP)  ## the site of docs/, in build/site (nothing is fetched)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)  ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## repeat the recorded numbers (an hour or two; OPENMOJI=DIR for its drawings too)
	$(BIN)/python -m benchmarks.quickstart $(if $(OPENMOJI),--openmoji $(OPENMOJI))
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.order
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.prepacking
	$(BIN)/python -m benchmarks.kinds
	$(BIN)/python -m benchmarks.update_growth
	$(BIN)/python -m benchmarks

bench-check: $(STAMP)  ## fail where mmformer is less ahead of its peers than was recorded (DATA=DIR for all rows)
	$(BIN)/python -m benchmarks --check

systems: $(STAMP)  ## measure named systems against their libraries again, and their speed
	$(BIN)/python -m pytest -q tests/interop --systems benchmarks/results/systems.json
	$(BIN)/python -m benchmarks.systems

numbers: $(STAMP)  ## measure quality on public sets (hours; DATA=DIR has a folder of each as it was published)
	$(BIN)/python -m benchmarks.numbers all $(if $(DATA),--data $(DATA))

vocabulary: $(STAMP)  ## train the default vocabulary again
	tokenizers/build.sh $(BIN)/mmformer

emoji: $(STAMP)  ## remake data/emoji from Debian's packages (see data/emoji/README.md)
	$(BIN)/python data/emoji/build.py

lock:  ## resolve requirements.lock again (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet \
	  --custom-compile-command "make lock" --group dev pyproject.toml -o requirements.lock

clean:  ## remove the environment, the caches and the runs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
