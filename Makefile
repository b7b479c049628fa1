.PHONY: run test setup lint lock lineage playground rooms commands docs bench-gpu bench-gpu-check bench-gpu-pack bench-gpu-read bench-ingest bench-near-duplicates bench-samplers bench-schedulers bench-serving bench-serving-clients bench-shapes bench-stacks bench-taking-over bench-train bench-tuning bench-weights help

# Some containers forbid bytecode, and uv makes none: each process would recompile eight thousand
# modules of TensorFlow and TFX, for half a minute. .venv is ours to write to.
unexport PYTHONDONTWRITEBYTECODE

# Sets up everything and runs the pipeline; RUN=runs/mine uses another output folder than runs/default,
# here and for the pages below; ARGS="--steps 800" passes on flags.
run: setup
	@.venv/bin/python runner_local.py $(if $(RUN),--output "$(RUN)") $(ARGS)

# Sets up everything, checks style and types, runs the fast tests; ARGS="-m slow" runs the slow ones.
test: setup lint
	@.venv/bin/python -m pytest $(ARGS)

# Opens a local web page with the lineage of all runs in an output folder.
lineage: setup
	@.venv/bin/python -m pipeline.lineage --store "$(or $(RUN),$(STORE),runs/default)" serve $(ARGS)

# Creates .venv, or brings it up to date with the lock file.
setup:
	@.ci/setup

# Checks style, types and import rules.
lint: setup
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy --no-error-summary
	@said=$$(.venv/bin/lint-imports --no-cache --no-logo) || { echo "$$said"; exit 1; }
	@.venv/bin/python -m docs.rooms --check

# Redraws the picture of docs/architecture.md from the imports of the code.
rooms: setup
	@.venv/bin/python -m docs.rooms

# Writes docs/commands.md from the commands themselves.
commands: setup
	@.venv/bin/python -m docs.commands

# Makes the output blocks of README.md and docs/ again, and all other generated parts: a few minutes,
# after `make run`.
docs: rooms commands
	@.venv/bin/python -m docs.outputs $(if $(RUN),--run "$(RUN)") $(ARGS)

# Opens a local web page that draws pictures with the pushed models.
playground: setup
	@.venv/bin/python -m serving.playground $(if $(RUN),--serving-dir "$(RUN)/serving_model") $(ARGS)

RESOLVE = .venv/bin/uv pip compile setup.py --overrides .ci/overrides.txt --generate-hashes --no-header --quiet --upgrade
# Resolves the ranges in setup.py into the lock files of both stacks and of the images; runs on either stack.
lock: setup
	$(RESOLVE) --extra vertex --extra mysql --extra heic --extra c2pa --extra sign --extra dev --universal --python-version 3.11 \
		--fork-strategy fewest --output-file requirements.lock
	$(RESOLVE) --extra vertex --extra mysql --extra heic --extra c2pa --extra sign --extra dev --python-version 3.10 \
		--python-platform x86_64-manylinux_2_35 --output-file requirements-old-stack.lock
	$(RESOLVE) --extra vertex --extra heic --extra c2pa --extra sign --extra cuda --python-version 3.13 \
		--python-platform x86_64-manylinux_2_40 --constraints requirements.lock \
		--output-file pipeline/vertex/image.lock
	.venv/bin/uv pip compile serving/deploy/verify.in --generate-hashes --no-header --quiet --upgrade \
		--python-version 3.13 --python-platform x86_64-manylinux_2_40 --constraints requirements.lock \
		--output-file serving/deploy/verify.lock
	sed -n '/^uv==/,/^    # via/p' requirements.lock | grep -v '# via' > .ci/uv.txt

# Measures training and drawing on this machine's GPU, beside diffusers; writes docs/gpu_speed.md.
bench-gpu: setup
	@.venv/bin/python -m benchmarks.gpu --look $(ARGS)
	.venv/bin/uv venv --quiet --allow-existing --python 3.11 .venv-torch
	.venv/bin/uv pip install --quiet --python .venv-torch/bin/python \
		--requirement benchmarks/train/requirements.txt
	.venv/bin/python -m benchmarks.gpu --torch-python .venv-torch/bin/python $(ARGS)

# Makes the same as a folder for a machine that has a GPU, JAX and PyTorch: OUT=folder.
bench-gpu-pack: setup
	.venv/bin/python -m benchmarks.gpu.pack $(if $(OUT),--out "$(OUT)") $(ARGS)

# Runs such a folder in small with JAX on this CPU, and compares it with TensorFlow.
bench-gpu-check: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.12 .venv-jax
	.venv/bin/uv pip install --quiet --python .venv-jax/bin/python \
		--requirement benchmarks/gpu/requirements.txt
	.venv/bin/python -m pytest -m slow tests/benchmarks/test_gpu_jax.py $(ARGS)

# Writes docs/gpu_speed.md from the results of such a run: FILE=results.json.
bench-gpu-read: setup
	.venv/bin/python -m benchmarks.gpu.page $(if $(FILE),--file "$(FILE)") $(ARGS)

# Measures ingest beside a plain `datasets` loop; writes docs/ingest_speed.md.
bench-ingest: setup
	.venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python .venv-datasets
	.venv/bin/uv pip install --quiet --python .venv-datasets/bin/python \
		--requirement benchmarks/ingest/requirements.txt
	.venv/bin/python -m benchmarks.ingest --loop-python .venv-datasets/bin/python $(ARGS)

# Measures what counts as a near duplicate: the table of docs/datasets.md.
bench-near-duplicates: setup
	.venv/bin/python -m benchmarks.near_duplicates $(ARGS)

# Measures quality and speed of each sampler: the table of docs/serving.md. After make run.
bench-samplers: setup
	.venv/bin/python -m benchmarks.samplers $(if $(RUN),--run "$(RUN)") $(ARGS)

# Writes the reference values of diffusers' schedulers, for the tests of samplers. Needs PyTorch.
bench-schedulers: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.11 .venv-torch
	.venv/bin/uv pip install --quiet --python .venv-torch/bin/python \
		--requirement benchmarks/weights/requirements.txt
	.venv-torch/bin/python benchmarks/serving/schedulers.py --output tests/data/schedulers

# Measures drawing with the SavedModels beside KerasCV, a notebook and diffusers; docs/serving_speed.md.
bench-serving: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.11 .venv-torch
	.venv/bin/uv pip install --quiet --python .venv-torch/bin/python \
		--requirement benchmarks/weights/requirements.txt
	.venv/bin/python -m benchmarks.serving --torch-python .venv-torch/bin/python $(ARGS)

# Measures pictures per second for one client and for eight, from a server that draws requests
# together. After bench-serving.
bench-serving-clients: setup
	.venv/bin/python -m benchmarks.serving.clients runs/bench_serving/tiny $(ARGS)

# Compares training in buckets with centre crops, at equal steps: the table of docs/training.md.
bench-shapes: setup
	@.venv/bin/python -m benchmarks.shapes $(ARGS)

# Compares both stacks, which needs a glibc for both: the table of docs/stacks.md. Needs 22 GB.
bench-stacks: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.10 .venv-old-stack
	.venv/bin/uv pip sync --quiet --python .venv-old-stack/bin/python --require-hashes requirements-old-stack.lock
	.venv/bin/python -m benchmarks.stacks --old-python .venv-old-stack/bin/python $(ARGS)

# Compares our networks with PyTorch's at full size: the table of docs/weights.md; leaves 4 GB in runs/.
bench-weights: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.11 .venv-torch
	.venv/bin/uv pip install --quiet --python .venv-torch/bin/python \
		--requirement benchmarks/weights/requirements.txt
	.venv-torch/bin/python benchmarks/weights/reference.py --size sd-v1-4 --output runs/diffusers_sd
	.venv/bin/python -m benchmarks.weights --checkpoint runs/diffusers_sd

# Measures a full-size training step beside others; writes docs/training_speed.md. Needs 22 GB.
bench-train: setup
	.venv/bin/uv venv --quiet --allow-existing --python 3.11 .venv-torch
	.venv/bin/uv pip install --quiet --python .venv-torch/bin/python \
		--requirement benchmarks/train/requirements.txt
	.venv/bin/python -m benchmarks.train --torch-python .venv-torch/bin/python $(ARGS)

# Compares the learning rate found by the search with a grid, on the latents of a run: the tables of docs/training.md.
bench-tuning: setup
	@.venv/bin/python -m benchmarks.tuning $(ARGS)

# Measures what a few more pictures cost LatentGen, beside encoding all; prints a table. A few minutes.
bench-taking-over: setup
	@.venv/bin/python -m benchmarks.taking_over $(ARGS)

# Lists all targets.
help:
	@awk '/^# /{text = text substr($$0, 2); next} /^[a-z-]+:/{sub(":.*", ""); printf "%-15s%s\n", $$0, text} {text = ""}' Makefile
