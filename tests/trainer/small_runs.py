"""Training runs of a network of a few thousand parameters, each in a process of its own if need be.

As a program this is the zygote that those processes are forked from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# As tests/conftest.py, for the processes that this is run in.
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the runners set it: which arithmetic is used must not depend on the machine.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf

from trainer.data.held_out import HeldOutPictures, Pictures
from trainer.data.latents import make_latent_example
from trainer.data.prior import PRIOR
from trainer.export.saved_models import DiffusionModelModule
from trainer.networks.new_vectors import token_embedding, with_vectors
from trainer.networks.seam import PaddedConv2D
from trainer.presets import (
    AutoencoderDimensions,
    DiffusionModelDimensions,
    Preset,
    TextEncoderDimensions,
    get_preset,
)
from trainer.text.tokenizer import new_word, tokenize
from trainer.training.distribution import is_chief, training_strategy
from trainer.training.evaluations import Evaluation, Evaluations, Plan, evaluations_for
from trainer.training.fine_tuner import Batch, FineTuner
from trainer.training_config import ResolvedTrainingConfig, TrainingConfig
from trainer.weights.base_model import BaseModel

BATCH = 4
WORD = new_word("<Creature>", "animal", 3)


def preset(num_blocks: int = 0) -> Preset:
    """A few thousand parameters, from the builders that full-size networks come from.

    What takes time is tracing, by the number of layers. Without blocks on the way down there are
    two residual blocks and an attention in the middle, and one of both on the way up.

    Args:
        num_blocks: Residual blocks of the U-Net, on the way down.
    """
    tiny = get_preset("tiny")
    return dataclasses.replace(
        tiny,
        image_size=64,
        training=dataclasses.replace(tiny.training, train_text_encoder=False, precision="float32"),
        text_encoder=TextEncoderDimensions(width=8, num_layers=1, num_heads=2),
        diffusion_model=DiffusionModelDimensions(
            widths=(8,),
            cross_attention=(True,),
            num_blocks=num_blocks,
            num_heads=2,
            timestep_width=8,
            embedding_width=16,
            norm_groups=4,
        ),
        image_encoder=AutoencoderDimensions(widths=(8, 8, 8, 16), num_blocks=0, norm_groups=4),
        decoder=AutoencoderDimensions(widths=(8, 8, 8, 16), num_blocks=0, norm_groups=4),
    )


def without_sampling(model: keras.Model, like: Preset, image_size: int) -> DiffusionModelModule:
    """What is exported of a diffusion model but its sampling loops, which take long to trace."""
    module = DiffusionModelModule(model, like, image_size)
    del module.serve, module.from_noise, module.sample
    del module.sampled, module.sampled_from_noise, module.sampled_at_size
    del module.rows, module.sample_rows
    return module


def config(**overrides: Any) -> ResolvedTrainingConfig:
    """Six steps of four examples; a checkpoint every two, a record every step."""
    settings = {
        "steps": 6,
        "batch_size": BATCH,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "constant",
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
        "seed": 3,
    }
    return TrainingConfig(**{**settings, **overrides}).resolved(preset())


def batch_of(step: int, shapes: Sequence[Sequence[int]] = ((8, 8),)) -> Batch:
    """Latents, contexts and tokens that depend on the step alone.

    Args:
        step: Its number.
        shapes: Heights and widths of latents, of which steps have one in turn.
    """
    rng = np.random.default_rng(step)
    shape = (BATCH, *shapes[step % len(shapes)], 4)
    return {
        "id": tf.constant([f"{step}-{row}" for row in range(BATCH)]),
        "latent/mean": tf.constant(rng.standard_normal(shape), tf.float32),
        "latent/log_variance": tf.constant(rng.standard_normal(shape) - 4, tf.float32),
        "context": tf.constant(rng.standard_normal((BATCH, 77, 8)), tf.float32),
        "tokens": tf.constant(rng.integers(0, 49408, (BATCH, 77)), tf.int64),
    }


def batches_from(first_step: int, shapes: Sequence[Sequence[int]] = ((8, 8),)) -> Iterator[Batch]:
    """The batches after `first_step` steps; see `batch_of`."""
    while True:
        yield batch_of(first_step, shapes)
        first_step += 1


def batch_with_prior(step: int) -> Batch:
    """`batch_of` with as many class pictures, which depend on the step alone, too."""
    others = batch_of(1000 + step)
    return {**batch_of(step), **{f"{PRIOR}{name}": value for name, value in others.items()}}


def batch_with_word(step: int) -> Batch:
    """`batch_of`, three of whose captions have `WORD`."""
    texts = ["a <creature>", "two <creature>, <creature>", "nothing", "<creature>!"]
    return {**batch_of(step), "tokens": tf.constant(tokenize(texts, word=WORD), tf.int64)}


def picture(index: int, shapes: Sequence[Sequence[int]] = ((8, 8),)) -> bytes:
    """The latents of a held-out picture, of one of some heights and widths."""
    rng = np.random.default_rng([9, index])
    height, width = shapes[index % len(shapes)]
    return make_latent_example(
        example_id=f"held-out-{index}",
        tokens=rng.integers(0, 49408, 77),
        context=rng.standard_normal((77, 8)),
        mean=rng.standard_normal((height, width, 4)),
        log_variance=rng.standard_normal((height, width, 4)) - 4,
        size=(8 * height, 8 * width) if len(shapes) > 1 else None,
    ).SerializeToString(deterministic=True)


def evaluations(
    settings: ResolvedTrainingConfig,
    count: int,
    former: Plan | None = None,
    shapes: Sequence[Sequence[int]] = ((8, 8),),
) -> Evaluations | None:
    """Evaluations on `count` held-out pictures; where something is chosen, on half of them."""
    records = [picture(index, shapes) for index in range(count)]
    half = count // 2
    parts = (records, records[:half], records[half:])
    held_out = HeldOutPictures(*(Pictures(len(part), part) for part in parts))
    return evaluations_for(settings, held_out, preset(), 64, former=former)


def plain_network() -> keras.Model:
    """Predicts from latent, timestep and context by one layer for each: ten times fewer to trace.

    For what is as true of one network as of any other, such as that a run can be resumed.
    """
    latent, timestep, context = keras.Input((8, 8, 4)), keras.Input((8,)), keras.Input((77, 8))
    x = PaddedConv2D(4, 3, padding=1)(latent)
    for given in (timestep, keras.layers.GlobalAveragePooling1D()(context)):
        x = keras.layers.Add()([x, keras.layers.Reshape((1, 1, 4))(keras.layers.Dense(4)(given))])
    epsilon = PaddedConv2D(4, 3, padding=1)(keras.layers.Activation("swish")(x))
    model = keras.Model([latent, timestep, context], epsilon)
    rng = np.random.default_rng(7)
    model.set_weights([rng.normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def tuner(
    *,
    strategy: tf.distribute.Strategy | None = None,
    num_blocks: int = 0,
    plain: bool = False,
    prior_weight: float | None = None,
    word: bool = False,
    **overrides: Any,
) -> FineTuner:
    """A fine-tuner of the small network of `preset`, or of the plain one; with `WORD`, of that."""
    small = preset(num_blocks)
    with (strategy or tf.distribute.get_strategy()).scope():
        base_model = BaseModel.locate(small, 64, "random")
        model = plain_network() if plain else base_model.build("diffusion_model")
        text_encoder = None
        if overrides.get("train_text_encoder") or word:
            text_encoder = base_model.build("text_encoder")
        if word:
            table = token_embedding(text_encoder).embeddings.numpy()
            begun = np.tile(table[WORD.initial_id], (WORD.vectors, 1))
            text_encoder = with_vectors(text_encoder, small, begun)
    empty = tf.constant(tokenize([""])[0]) if text_encoder else tf.zeros((77, 8))
    return FineTuner(
        model,
        small,
        config(**overrides),
        empty_caption=empty,
        text_encoder=text_encoder,
        word=WORD if word else None,
        strategy=strategy,
        prior_weight=prior_weight,
    )


def state(subject: FineTuner) -> list[np.ndarray]:
    """Everything that a run leaves behind."""
    optimizer = subject.optimizer
    return [
        np.array(tf.convert_to_tensor(v))
        for v in (
            *subject.variables,
            *(v for name, some in optimizer.state.items() if name != "averages" for v in some),
            *optimizer.averages,
            *([subject.loss_scale.scale] if subject.loss_scale else []),
        )
    ]


def train(order: Mapping[str, Any]) -> None:
    """Trains as the order says, and writes `<folder>/end.npz` where this process writes.

    Keys: `folder`, `overrides` of the configuration, `num_blocks` or `plain` for the network,
    `prior_weight` for class pictures in every batch,
    `word` to train that alone,
    `signal` and `at_step` to send oneself a signal when a step's batch is asked for, `tf_config` or
    `virtual_cpus` for several devices, `shapes` of latents (see `batch_of`), `held_out` for so many
    held-out pictures, of whose losses `end.npz` has those of every evaluation and the weights that
    they choose; `at_evaluation` sends the signal when the evaluation of that number has been made.
    """
    strategy = None
    if "tf_config" in order:
        os.environ["TF_CONFIG"] = json.dumps(order["tf_config"])
        strategy = training_strategy("all")
    elif "virtual_cpus" in order:
        [cpu] = tf.config.list_physical_devices("CPU")
        count = order["virtual_cpus"]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
        strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(count)])
    subject = tuner(
        strategy=strategy,
        num_blocks=order.get("num_blocks", 0),
        plain=order.get("plain", False),
        prior_weight=order.get("prior_weight"),
        word=order.get("word", False),
        **order.get("overrides", {}),
    )

    shapes = order.get("shapes", ((8, 8),))

    def batches(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches_from(first_step, shapes), first_step + 1):
            if order.get("word"):
                batch = batch_with_word(step - 1)
            if step == order.get("at_step"):
                os.kill(os.getpid(), signal.Signals[order["signal"]])
            yield batch_with_prior(step - 1) if "prior_weight" in order else batch

    made: list[int] = []

    def on_evaluation(evaluation: Evaluation) -> None:
        made.append(evaluation.step)
        if len(made) == order.get("at_evaluation"):
            os.kill(os.getpid(), signal.Signals[order["signal"]])

    scored = evaluations(subject.config, order.get("held_out", 0), shapes=shapes)
    records = subject.train(
        batches, order["folder"], evaluations=scored, on_evaluation=on_evaluation
    )
    end = state(subject)
    chosen: dict[str, np.ndarray] = {}
    if scored is not None:
        chosen["evaluated"] = np.array([[e.step, *e.losses] for e in scored.done])
        if scored.keeps_best:
            logging.info("chose step %d", scored.best.step)
            subject.assign_kept(order["folder"], scored.best.step)
            kept = [np.ravel(tf.convert_to_tensor(v)) for v in subject.variables]
            chosen["kept"] = np.concatenate(kept)
    if is_chief(strategy):
        losses = [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in records]
        arrays = {f"{i:04d}": array for i, array in enumerate(end)}
        np.savez(Path(order["folder"], "end.npz"), losses=np.array(losses), **arrays, **chosen)


def ends_alike(expected: Path, actual: Path, rtol: float = 1e-5) -> None:
    """Asserts that two folders that `train` wrote hold the same, but for the order of sums."""
    with np.load(expected / "end.npz") as a, np.load(actual / "end.npz") as b:
        assert a.files == b.files
        np.testing.assert_allclose(b["losses"][:, :3], a["losses"][:, :3], rtol=rtol)
        # AdamW divides by the gradient's own size, and so makes much of what is nearly zero: of the
        # weights below, and of the gradients' norms after them.
        np.testing.assert_allclose(b["losses"][:, 3], a["losses"][:, 3], rtol=10 * rtol)
        names = [name for name in a.files if name != "losses"]
        ours, theirs = (np.concatenate([x[n].ravel() for n in names]) for x in (b, a))
    assert np.linalg.norm(ours - theirs) <= 2 * rtol * np.linalg.norm(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=10 * rtol)


def ends_identical(expected: Path, actual: Path) -> None:
    """Asserts that two folders that `train` wrote hold the same, bit by bit."""
    with np.load(expected / "end.npz") as a, np.load(actual / "end.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(b[name], a[name], name)


class Zygote:
    """Imports TensorFlow once and forks a process for every run, each with a runtime of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs: dict[int, Path] = {}
        self._running: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Not the workers of the processes that several devices are tested with.
            start_new_session=True,
        )
        assert self._read() == "ready"

    def start(self, **order: Any) -> int:
        """Starts `train` in a process of its own and returns its id."""
        log = self._folder / f"{len(self._logs)}.log"
        pid = int(self._ask({**order, "log": str(log)}))
        self._logs[pid] = log
        self._running.add(pid)
        return pid

    def wait(self, pid: int, seconds: float = 120.0) -> tuple[int, str]:
        """The exit status, or the negative number of the signal, and what was logged.

        A process that is not done in time is killed.
        """
        status = int(self._ask({"wait": pid, "seconds": seconds}))
        self._running.remove(pid)
        return status, self._logs[pid].read_text()

    def run(self, **order: Any) -> tuple[int, str]:
        """`train` in a process of its own; see `wait`."""
        return self.wait(self.start(**order))

    def close(self) -> None:
        """Ends every process."""
        for pid in list(self._running):
            self.wait(pid, 0.0)
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, request: Mapping[str, Any]) -> str:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        line = self._process.stdout.readline().strip()
        assert line, "the zygote is gone"
        return line


def _serve() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(_wait(request["wait"], request["seconds"]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            log = os.open(request["log"], os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            logging.basicConfig(level=logging.INFO)
            try:
                train(request)
                status = 0
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)


def _wait(pid: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    _serve()
