# make demo: the whole journey.   make test: lint, types, layers, tests.   make test-all: the long tests too.
# Each makes its own environment.
VENV ?= .venv
PYTHON ?= python3
PORT ?= 5000
JOBS ?= 3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test test-all lint format ui install clean

install: $(STAMP)

$(STAMP): constraints.txt $(wildcard requirements/*.txt) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PillSnap needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some minutes, and 8 GB on the disk; torch is the largest part"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/pillsnap demo $(DEMO)

test: $(STAMP) lint
	$(BIN)/python -m pytest --numprocesses $(JOBS) --durations 25 -m 'not long' $(TESTS)

test-all: $(STAMP) lint
	$(BIN)/python -m pytest --numprocesses $(JOBS) --durations 25 --hypothesis-profile long $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: export MLFLOW_DISABLE_TELEMETRY ?= true
ui: $(STAMP)
	@echo 'MLflow: http://127.0.0.1:$(PORT)/#/?workflowType=machine_learning   (runs and models: the view "Model training")'
	$(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db --registry-store-uri gated+sqlite:///mlflow.db \
		--host 127.0.0.1 --port $(PORT)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
