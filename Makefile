.PHONY: run test setup lint lock help

# Sets up everything and runs the pipeline; ARGS="--steps 800" passes flags on.
run: setup
	@.venv/bin/python runner_local.py $(ARGS)

# Sets up everything, checks style and types, runs the fast tests; ARGS="-m slow" runs the others.
test: setup lint
	@.venv/bin/python -m pytest $(ARGS)

setup:
	@.ci/setup

lint: setup
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy --no-error-summary

# Resolves the ranges in setup.py into requirements.lock and the pin of uv itself.
lock: setup
	.venv/bin/uv pip compile setup.py --extra vertex --extra dev --python .venv/bin/python \
		--generate-hashes --no-header --upgrade --output-file requirements.lock
	sed -n '/^uv==/,/^    # via/p' requirements.lock | grep -v '# via' > .ci/uv.txt

help:
	@sed -n '/^# /{h;d};/^[a-z]*:/{G;p}' Makefile
