# `make run` trains the default configuration, `make test` runs every test; each makes what it needs of .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
BASE := $(VENV)/.base
READY := $(VENV)/.ready
ZOO := $(VENV)/.zoo
JOBS ?= 2

.PHONY: run test coverage test-fast zoo lint format docs docs-check install wheel-check clean
run: $(BASE)
	@echo "bitsback train configs/digits.yaml"
	@$(BIN)/bitsback train configs/digits.yaml

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) tests bitsback --doctest-modules $(COVERAGE)

coverage: COVERAGE := --cov --cov-report=
coverage: test
	$(BIN)/python scripts/check_coverage.py

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" tests

zoo: $(ZOO)
	SKIPS=fail $(BIN)/python -m pytest -n $(JOBS) tests/test_zoo.py tests/test_loops.py tests/test_plain.py tests/test_source.py \
		tests/test_ready_networks.py

docs-check: $(READY)
	$(BIN)/python -m pytest tests/test_readme.py tests/test_configs.py bitsback --doctest-modules

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

wheel-check:
	scripts/check_wheel.sh "$(PYTHON)"

$(BASE): pyproject.toml constraints.txt
	@echo "making $(VENV): an environment of its own, about 1.2 GB, most of it torch; a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@echo "installing torch"
	@$(PIP) torch==2.13.0
	@echo "installing bitsback with its reports"
	@$(PIP) --editable '.[report,watch]'
	@touch $(BASE)

$(READY): $(BASE)
	@echo "installing what tests, documentation and lint need, about 0.7 GB more"
	@$(PIP) --editable '.[dev]'
	@touch $(READY)

# torchvision brings a torch of its own, and timm needs it only to be importable; so do the libraries of Bayesian networks and what
# laplace-torch imports; lightning asks for itself under another name
$(ZOO): $(READY)
	@echo "installing transformers, peft, datasets, timm, accelerate, lightning, onnx and libraries of Bayesian networks, about 0.6 GB more"
	@$(PIP) transformers peft datasets accelerate onnx onnxscript onnxruntime einops opt-einsum
	@$(PIP) --no-deps timm torchvision lightning lightning-utilities torchmetrics
	@$(PIP) --no-deps bayesian-torch==0.5.0 blitz-bayesian-pytorch==0.2.8 torchbnn==1.2 tyxe==0.0.2 ivon-opt==0.1.3 laplace-torch==0.3
	@$(PIP) --no-deps asdfghjkl==0.1a4 backpack-for-pytorch curvlinops-for-pytorch unfoldNd einconv linear_operator jaxtyping wadler_lindig
	@touch $(ZOO)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/_build docs/reference docs/notebooks docs/figures docs/explorer
