# Every target creates .venv when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test coverage test-quick serve docs lint lock sbom bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[core,server,worker,device,dev]'
	@touch $@

demo: $(STAMP)  ## condense over HTTP, deliver to a device process, on real input
	$(BIN)/python -m demo

# A process per core, at most eight: each takes up to 1 GB.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

test: $(STAMP)  ## every test
	$(BIN)/pytest $(PARALLEL)

coverage: $(STAMP)  ## every test, more slowly, and how much of the code they run
	$(BIN)/pytest $(PARALLEL) --cov --cov-report=term:skip-covered

test-quick: $(STAMP)  ## those that need no servers, start no processes and take no seconds
	$(BIN)/pytest $(PARALLEL) -m "not process and not servers and not slow"

serve: $(STAMP)  ## API and worker on this machine
	$(BIN)/mdc up

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## the documentation site in build/site; a dead link is an error
	$(BIN)/python -m tools.reference
	$(BIN)/zensical build --clean --strict

# The versions are those of .venv, which the tests ran with.
LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --constraint .venv/versions.txt --generate-hashes --no-annotate \
  --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock"

lock: $(STAMP)  ## what the images and developers install, with hashes
	$(BIN)/pip freeze --exclude-editable --quiet > .venv/versions.txt
	$(LOCK) --python-version 3.11 --extra server --output-file docker/requirements-api.txt
	$(LOCK) --python-version 3.11 --extra worker --output-file docker/requirements-worker.txt
	# The site generator needs 3.11.5.
	$(LOCK) --python-version 3.11.5 --extra worker --extra device --extra dev --output-file requirements-dev.txt

sbom: $(STAMP)  ## what .venv holds, as CycloneDX
	$(BIN)/cyclonedx-py environment $(BIN)/python --output-reproducible --output-file sbom.json

# What a few minutes measure; the others take data, servers or hours, and say so at their top.
bench: $(STAMP)  ## one JSON object per benchmark
	for name in condense_step claim_job serve_subset watchers fleet; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv
