# One command each, no logic. Variables: ROWS="mlp2-mnist …" SEEDS=n BUDGET=4h TOGETHER=10 WORKERS=0 FRESH=1 CONTINUE=1 KEEP=all NAMES="dead-units …" PARTS="article rows" ROUNDS=3 PORT=5000 PYTHON=python3.12
PYTHON ?= python3
WORKERS ?= 2
python := .venv/bin/python
stamp := .venv/.installed-$(shell sha256sum requirements.lock | cut -c1-16)

.PHONY: setup reproduce train test demo controls claims determinism faults report verify track export ui bench gpu lint lock

setup: $(stamp)

$(stamp):
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "remeasure needs Python 3.11 to 3.13; say make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(python) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(python) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $(stamp)

reproduce: setup
	$(python) src/reproduce.py reproduce $(ROWS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BUDGET),--budget $(BUDGET)) $(if $(TOGETHER),--together $(TOGETHER)) $(if $(FRESH),--fresh) $(if $(CONTINUE),--continue) $(if $(KEEP),--keep $(KEEP)) $(ARGS)

train: setup
	$(python) src/train.py $(ARGS)

test: setup
	$(python) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

demo: setup
	$(python) src/reproduce.py --demo --fresh

controls: setup
	$(python) src/reproduce.py --controls

claims: setup
	$(python) -m remeasure.claims $(NAMES) $(if $(FRESH),--fresh) $(ARGS)

determinism: setup
	$(python) -m remeasure.cli.determinism

faults: setup
	REMEASURE_FAULTS=$(or $(KILLS),100) $(python) -m pytest tests/faults $(ARGS)

report: setup
	$(python) src/reproduce.py table

verify: setup
	$(python) src/reproduce.py verify
	$(python) -m remeasure.claims --check

track: setup
	$(python) src/reproduce.py track

export: setup
	$(python) src/reproduce.py export $(or $(ROW),$(ROWS))

ui: setup
	$(python) src/reproduce.py ui $(if $(PORT),--port $(PORT))

bench: setup
	$(python) -m remeasure.bench $(PARTS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

gpu: setup
	$(python) -m remeasure.bench.gpu --out $(or $(OUT),runs/gpu) $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

lock:
	uv pip compile pyproject.toml --universal --all-extras --generate-hashes --no-header --quiet -o requirements.lock
