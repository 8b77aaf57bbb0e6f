# Every target creates .venv when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test serve lint bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[core,server,worker,device,dev]'
	@touch $@

demo: $(STAMP)  ## condense over HTTP, deliver to a device process, on real input
	$(BIN)/python -m demo

test: $(STAMP)  ## every test
	$(BIN)/pytest

serve: $(STAMP)  ## API and worker on this machine
	$(BIN)/mdc up

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## what is measured, one JSON line per benchmark; the published run takes a GPU and is left out
	for file in $(filter-out %/paper_run.py, $(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv
