# Every target sets itself up: a virtual environment with the packages of requirements-dev.lock, each checked against
# its digest.
PYTHON ?= python3
DEMO ?= demo
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --quiet
export RAY_ADDRESS ?= local

.PHONY: demo test coverage test-slow test-infra soak lint bench ablation instruments lock

demo: $(READY)  ## the main job on the embedded data set
	$(BIN)/python jobs/phantom.py  --out $(DEMO)/raw
	$(BIN)/python jobs/pack.py     --source $(DEMO)/raw --out $(DEMO)/datasets/phantom
	$(BIN)/python jobs/train.py    demo --data $(DEMO)/datasets/phantom --out $(DEMO)/runs/demo
	$(BIN)/python jobs/generate.py --model $(DEMO)/runs/demo --out $(DEMO)/batches/demo --count 64 || \
	  { [ $$? = 3 ] && echo "so little training is not fit for use; look at the reports"; }

test coverage test-slow: export OMP_WAIT_POLICY := PASSIVE  # threads that wait take no CPU from the tests beside them

test: $(READY)
	$(BIN)/pytest -q -n 2 --dist worksteal --durations 15

coverage: $(READY)  ## of the same tests, but for what runs in Ray's workers and in processes of jobs
	$(BIN)/pytest -q -n 2 --dist worksteal --cov=oasisgen

test-slow: $(READY)  ## real faults
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile --timeout 1200 --durations 0

test-infra: $(READY)  ## an image, three nights as pods would run them, a full disk, S3 policies; needs root, buildah, kubectl
	$(BIN)/pytest -q -m infra

soak: $(READY)  ## half an hour of faults on the S3 server that AWS's variables and S3_TEST_BUCKET name
	$(BIN)/python -m tests.soak

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY)  ## speed; on the real slices of OASISGEN_OASIS_DIR, else on virtual subjects
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.generate

ablation: $(READY)  ## recipes of stage 1 beside each other; needs OASISGEN_OASIS_DIR
	$(BIN)/python -m benchmarks.ablation_vqvae

instruments: $(READY)  ## do the measures see known damage? needs OASISGEN_OASIS_DIR
	$(BIN)/python -m benchmarks.instruments

lock: $(READY)  ## pin the dependencies of pyproject.toml anew: of nodes, and of developers with the same versions
	$(COMPILE) --upgrade --extra dicom --extra probe -o requirements.lock
	$(COMPILE) --upgrade --extra dev --extra bench -c requirements.lock -o requirements-dev.lock

# pip brings the locked uv, which installs the rest; where only pip knows the mirror, pip does.
# Our own package is built with the lock's setuptools: a build of its own would fetch one that nobody checked.
$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "oasisgen needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.lock > .venv/uv.lock
	$(PIP) --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv --require-hashes -r requirements-dev.lock || \
	  $(PIP) --require-hashes -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
