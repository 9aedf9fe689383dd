# One command each, no logic. Variables: ROWS="mlp2-mnist …" SEEDS=n BUDGET=4h TOGETHER=10 WORKERS=0 FRESH=1 CONTINUE=1 KEEP=all ON=slurm NAMES="dead-units …" PARTS="article rows" ROUNDS=3 PORT=5000 PYTHON=python3.12
PYTHON ?= python3
WORKERS ?= 3
python := .venv/bin/python

unexport PYTHONDONTWRITEBYTECODE # containers set it, and each process would compile torch and all else again, for 20 s

.PHONY: setup setup-dev reproduce train test demo controls claims determinism faults report verify track export ui bench gpu docs lint lock

setup:
	@$(PYTHON) src/set_up.py run

setup-dev:
	@$(PYTHON) src/set_up.py dev

reproduce: setup
	$(python) src/reproduce.py reproduce $(ROWS) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BUDGET),--budget $(BUDGET)) $(if $(TOGETHER),--together $(TOGETHER)) $(if $(FRESH),--fresh) $(if $(CONTINUE),--continue) $(if $(ON),--on $(ON)) $(if $(KEEP),--keep $(KEEP)) $(ARGS)

train: setup
	$(python) src/train.py $(ARGS)

test: setup-dev
	$(python) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

demo: setup
	$(python) src/reproduce.py --demo --fresh

controls: setup
	$(python) src/reproduce.py --controls

claims: setup
	$(python) -m remeasure.claims $(NAMES) $(if $(FRESH),--fresh) $(ARGS)

determinism: setup
	$(python) -m remeasure.cli.determinism

faults: setup-dev
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

docs: setup-dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

lint: setup-dev docs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Two layers, one resolution: uv keeps the versions that the output file has.
lock: setup-dev
	.venv/bin/uv pip compile pyproject.toml --universal --all-extras --generate-hashes --no-header --quiet -o requirements-dev.lock
	cp requirements-dev.lock requirements.lock
	.venv/bin/uv pip compile pyproject.toml --universal --extra train --extra build --generate-hashes --no-header --quiet -o requirements.lock
