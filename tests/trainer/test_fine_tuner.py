"""The training step against NumPy, and runs that are stopped and resumed."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf
from small_runs import Batch, batch_of, batches_from, config, state, tuner

from storage.user_errors import UserError
from trainer.data.latents import batch_spec
from trainer.diffusion.noise_schedule import alphas_cumprod, timestep_embedding
from trainer.text.tokenizer import tokenize
from trainer.training.fine_tuner import (
    FineTuner,
    StepRecord,
    TrainingDivergedError,
    learning_rate_at,
    read_history,
)


class Spy(keras.Model):
    """Predicts what its inputs add up to, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def call(self, inputs, training=False):
        self.seen.append([np.array(x) for x in inputs])
        return 0.5 * inputs[0] + tf.reduce_mean(inputs[2], axis=[1, 2])[:, None, None, None]


def spied_on(trained_as: tuple[Any, ...] = (), **overrides) -> tuple[FineTuner, Spy]:
    spy = Spy()
    subject = FineTuner(
        spy,
        small_runs.preset().trained_as(*trained_as),
        config(**overrides),
        empty_caption=tf.zeros((77, 8)),
    )
    return subject, spy


@pytest.mark.parametrize(
    ("trained_as", "options"),
    [
        ((), {}),
        ((), {"min_snr_gamma": 5.0}),
        ((), {"noise_offset": 0.3}),
        ((), {"min_snr_gamma": 0.5, "noise_offset": 0.1}),
        (("v_prediction",), {}),
        (("v_prediction",), {"min_snr_gamma": 5.0}),
        (("v_prediction", True), {"min_snr_gamma": 0.5, "noise_offset": 0.1}),
    ],
    ids=str,
)
def test_loss_is_the_mean_squared_error_by_hand(
    trained_as: tuple[Any, ...], options: dict[str, float]
) -> None:
    subject, spy = spied_on(trained_as, caption_dropout=0.0, **options)
    batch, step = batch_of(0), tf.constant(5, tf.int64)
    loss = float(subject.loss(batch, step))

    key = tf.random.experimental.stateless_fold_in(tf.constant([3, 0], tf.int64), step)
    time_key, noise_key, posterior_key, _, _ = tf.unstack(tf.random.split(key, 5))
    noise = tf.random.stateless_normal((4, 8, 8, 4), posterior_key).numpy()
    latent = (
        0.18215 * (batch["latent/mean"] + np.exp(batch["latent/log_variance"] / 2) * noise).numpy()
    )
    timesteps = tf.random.stateless_uniform([4], time_key, 0, 1000, tf.int32).numpy()
    epsilon = tf.random.stateless_normal((4, 8, 8, 4), noise_key).numpy()
    offset_key = tf.random.experimental.stateless_fold_in(noise_key, 1)
    offset = tf.random.stateless_normal((4, 1, 1, 4), offset_key).numpy()
    epsilon = epsilon + options.get("noise_offset", 0.0) * offset
    alpha = alphas_cumprod()[timesteps].astype(np.float64)
    if len(trained_as) > 1:
        # Lin et al. 2024, algorithm 1.
        roots = np.sqrt(alphas_cumprod().astype(np.float64))
        scaled = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        alpha = scaled[timesteps] ** 2
    factor = alpha[:, None, None, None]
    noisy = np.sqrt(factor) * latent + np.sqrt(1 - factor) * epsilon
    [inputs] = spy.seen
    np.testing.assert_allclose(inputs[0], noisy, atol=1e-4)
    np.testing.assert_allclose(inputs[1], timestep_embedding(timesteps, 8), atol=1e-5)
    np.testing.assert_allclose(inputs[2], batch["context"])

    predicted = 0.5 * noisy + batch["context"].numpy().mean((1, 2))[:, None, None, None]
    ratio = alpha / (1 - alpha)
    gamma = options.get("min_snr_gamma", np.inf)
    weights = np.array([min(r, gamma) / (r + 1 if trained_as else r) for r in ratio])
    target = epsilon
    if trained_as:
        target = np.sqrt(factor) * epsilon - np.sqrt(1 - factor) * latent
        if "min_snr_gamma" not in options:
            weights = np.ones(4)
    losses = np.mean((target - predicted) ** 2, axis=(1, 2, 3))
    assert loss == pytest.approx(np.mean(weights * losses), rel=1e-4)


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    subject, _ = spied_on(caption_dropout=0.5, noise_offset=0.1)
    batch, step = batch_of(0), tf.constant(2, tf.int64)
    parts = [
        float(subject.loss({k: v[row : row + 1] for k, v in batch.items()}, step, row))
        for row in range(4)
    ]
    assert sum(parts) == pytest.approx(float(subject.loss(batch, step)), rel=1e-6)
    assert len(set(parts)) == 4


def test_captions_are_dropped_at_the_given_rate() -> None:
    subject, spy = spied_on(caption_dropout=0.3)
    for step in range(100):
        subject.loss(batch_of(0), tf.constant(step, tf.int64))
    dropped = [np.all(context == 0.0, axis=(1, 2)) for _, _, context in spy.seen]
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.07)


def test_a_dropped_caption_becomes_the_tokens_of_the_empty_one() -> None:
    seen = []

    class TextSpy(keras.Model):
        def call(self, inputs, training=False):
            seen.append(np.array(inputs))
            return tf.zeros((4, 77, 8))

    subject, _ = spied_on(caption_dropout=0.4)
    subject.text_encoder = TextSpy()
    subject._empty_caption = tf.fill([77], 7)
    for step in range(50):
        subject.loss(batch_of(0), tf.constant(step, tf.int64))
    dropped = np.all(np.array(seen) == 7, axis=2)
    assert dropped.mean() == pytest.approx(0.4, abs=0.08)
    kept = np.array(seen)[~dropped]
    assert {tuple(t) for t in kept} == {tuple(t) for t in batch_of(0)["tokens"].numpy()}


def test_clipping_is_global(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, _ = spied_on(max_gradient_norm=0.05)
    applied: list[np.ndarray] = []
    monkeypatch.setattr(
        subject.optimizer,
        "apply",
        lambda gradients, learning_rate, step: applied.extend(g.numpy() for g in gradients),
    )
    gradients = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    _, norm, _ = subject._update(tf.constant(1.0), gradients, None)
    assert float(norm) == pytest.approx(13.0)
    np.testing.assert_allclose(applied[0], np.array([3.0, 4.0]) * 0.05 / 13, rtol=1e-5)
    np.testing.assert_allclose(applied[1], [[12.0 * 0.05 / 13]], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5 - 0.5 * np.cos(np.pi / 4)]),
    ],
)
def test_learning_rate_by_hand(schedule: str, expected: list[float]) -> None:
    settings = config(learning_rate=1.0, learning_rate_schedule=schedule)
    actual = [float(learning_rate_at(settings, tf.constant(step))) for step in (0, 1, 2, 3, 5)]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def facts(records) -> list[tuple]:
    return [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in records]


@pytest.mark.parametrize("overrides", [{}, {"accumulation_steps": 2}], ids=str)
def test_no_sum_of_gradients_depends_on_what_memory_is_free(overrides: dict[str, int]) -> None:
    """AddN adds the inputs up in an order of its own as soon as there are three."""
    subject = tuner(**overrides)
    gradients = subject.trace(batch_spec(small_runs.preset(), 64, False, small_runs.BATCH))
    sums = [o for o in gradients[0].graph.get_operations() if o.type == "AddN"]
    assert sums
    assert {len(o.inputs) for o in sums} == {2}


def test_a_step_is_called_where_sums_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    options = tf.config.optimizer.get_experimental_options
    before, within = options(), []
    subject = tuner()
    step = subject.step_function

    def looked_at(*given: Any) -> Any:
        within.append(options()["arithmetic_optimization"])
        return step(*given)

    monkeypatch.setattr(subject, "_step_function", looked_at)
    subject.train_step(batch_of(0))
    assert within == [False]
    assert options() == {**before, "arithmetic_optimization": True}


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    # Records every four steps: the one of step 4 spans the checkpoint that is resumed from.
    settings = {"plain": True, "log_every_steps": 4, "checkpoint_every_steps": 3}
    whole = tuner(**settings)

    def copied_in_step_6(first_step: int) -> Iterator:
        """What is on the disk then is what a run that is killed leaves."""
        for step, batch in enumerate(batches_from(first_step), first_step + 1):
            if step == 6:
                shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
            yield batch

    history = whole.train(copied_in_step_6, str(tmp_path / "whole"))
    assert [r.step for r in history] == [4, 6]
    assert not list((tmp_path / "stopped").glob("ckpt-6*"))
    resumed = tuner(**settings)
    steps: list[int] = []
    resumed_history = resumed.train(
        batches_from, str(tmp_path / "stopped"), lambda record: steps.append(record.step)
    )
    assert steps == [4, 6]
    for a, b in zip(state(whole), state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert facts(resumed_history) == facts(history)
    assert facts(read_history(str(tmp_path / "stopped"))) == facts(history)

    # The averages take the weights' place for as long as pictures are drawn, and no longer.
    before = state(resumed)
    averages = [np.array(v) for v in resumed.optimizer.averages]
    with resumed.averaged():
        for variable, average in zip(resumed.variables, averages, strict=True):
            np.testing.assert_array_equal(variable, average)
    for a, b in zip(before, state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_record_after_a_resume_is_of_the_steps_since_the_last_whatever_the_interval(
    tmp_path: Path,
) -> None:
    def run(stop_at: int, **settings: int) -> list[StepRecord]:
        """Steps whose loss is their number."""
        subject, _ = spied_on(checkpoint_every_steps=1, **settings)

        def step(batch: Batch, stop: bool) -> tuple[None, None, tf.Tensor]:
            done = subject.step.assign_add(1)
            subject._window.assign_add([float(done), 1.0, 1.0])
            return None, None, done

        def batches(first_step: int) -> Iterator[Batch]:
            yield from itertools.islice(batches_from(first_step), stop_at - first_step)
            raise KeyboardInterrupt

        subject.train_step = step
        with contextlib.suppress(KeyboardInterrupt):
            return subject.train(batches, str(tmp_path))
        return []

    assert run(5, log_every_steps=3) == []
    records = run(7, log_every_steps=2)
    assert [(record.step, record.loss) for record in records] == [(3, 2.0), (6, 5.0)]


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path, kept: int) -> None:
    subject, _ = spied_on(checkpoint_every_steps=1, checkpoints_kept=kept)
    subject.train_step = lambda batch, stop: (None, None, subject.step.assign_add(1))
    subject.train(batches_from, str(tmp_path))
    found = sorted(path.stem for path in tmp_path.glob("ckpt-*.index"))
    assert found == [f"ckpt-{step}" for step in range(7 - kept, 7)]


def test_pictures_are_drawn_every_so_many_steps(tmp_path: Path) -> None:
    subject, _ = spied_on()
    subject.train_step = lambda batch, stop: (None, None, subject.step.assign_add(1))
    drawn: list[int] = []
    subject.train(batches_from, str(tmp_path), draw=drawn.append, draw_every_steps=2)
    assert drawn == [2, 4]


def test_a_loss_that_is_not_a_number_names_step_examples_and_checkpoint(tmp_path: Path) -> None:
    def broken(first_step: int) -> Iterator:
        for step, batch in enumerate(batches_from(first_step)):
            factor = np.nan if step == 3 else 1.0
            yield {**batch, "context": batch["context"] * factor}

    # The next record, where the loss is looked at, is that of step 6.
    with pytest.raises(TrainingDivergedError, match=r"step 4; .* 3-0, 3-1, 3-2, 3-3; .*ckpt-2"):
        tuner(plain=True, log_every_steps=6, checkpoint_every_steps=2).train(broken, str(tmp_path))
    assert not (tmp_path / "ckpt-4.index").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.batch_size = 4 cannot be split evenly.* of 3 "):
        spied_on(accumulation_steps=3)


def graph_gradients(subject: FineTuner) -> tuple[float, list[np.ndarray]]:
    compute = tf.function(lambda batch: subject._loss_and_gradients(batch, 0), autograph=False)
    loss, gradients = compute({k: v for k, v in batch_of(0).items() if k != "id"})
    return float(loss), [g.numpy() for g in gradients]


def test_accumulated_gradients_are_the_large_batchs() -> None:
    loss, gradients = graph_gradients(tuner(plain=True))
    subject = tuner(plain=True, accumulation_steps=4, warmup_steps=0, weight_decay=0.0)
    batch = {k: v for k, v in batch_of(0).items() if k != "id"}
    batch = {name: batch[name] for name in subject._features(batch)}
    for part in range(4):
        subject._part_function(subject._share_out(batch, part), tf.constant(part))
    *sums, total = [v.numpy() for v in subject._accumulated]
    assert total == pytest.approx(loss, rel=1e-5)
    scale = max(np.abs(g).max() for g in gradients)
    for expected, actual in zip(gradients, sums, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)

    before = [v.numpy() for v in subject.variables]
    done, norm, _ = subject._update_function(None)
    assert float(done) == pytest.approx(loss, rel=1e-5)
    expected_norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
    assert float(norm) == pytest.approx(expected_norm, rel=1e-5)
    # AdamW's first update goes against the gradient's sign, by the learning rate.
    for old, new, gradient in zip(before, subject.variables, gradients, strict=True):
        large = np.abs(gradient) > 1e-4 * expected_norm
        moved = (new.numpy() - old)[large]
        np.testing.assert_allclose(moved, -1e-2 * np.sign(gradient[large]), rtol=1e-2)
    assert not any(np.any(v.numpy()) for v in subject._accumulated)


def test_a_text_encoder_is_trained_along() -> None:
    subject = tuner(train_text_encoder=True, caption_dropout=0.0, weight_decay=0.0, warmup_steps=0)
    assert subject.text_encoder is not None
    networks = (subject.diffusion_model, subject.text_encoder)
    assert len(subject.variables) == sum(len(m.trainable_variables) for m in networks)
    # The batch's own contexts are not looked at.
    batch, step = batch_of(0), tf.constant(1, tf.int64)
    context = subject.text_encoder(tf.cast(batch["tokens"], tf.int32))
    alone = FineTuner(
        subject.diffusion_model,
        small_runs.preset(),
        config(caption_dropout=0.0),
        empty_caption=tf.zeros((77, 8)),
    )
    expected = float(alone.loss({**batch, "context": context}, step))
    del batch["context"]
    assert float(subject.loss(batch, step)) == pytest.approx(expected, rel=1e-5)

    before = [v.numpy() for v in subject.variables]
    subject.train_step(batch_of(0))
    seen = np.unique(batch["tokens"])
    for old, new in zip(before, subject.variables, strict=True):
        change = np.abs(new.numpy() - old)
        if len(old) == 49408:
            # Of the vocabulary, the words that were in a caption.
            assert np.all(change[seen].max(axis=1) > 0)
            assert np.all(np.delete(change, seen, axis=0) == 0)
        else:
            assert change.max() > 0, new.name


def test_a_text_encoder_that_is_trained_along_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"train_text_encoder is true, but no text encoder"):
        spied_on(train_text_encoder=True)


def test_a_text_encoder_that_is_not_trained_encodes_all_the_same() -> None:
    """As of a model that is started from, whose own one was trained."""
    text_encoder = small_runs.BaseModel.locate(small_runs.preset(), 64, "random").build(
        "text_encoder"
    )
    subjects = [
        FineTuner(
            small_runs.plain_network(),
            small_runs.preset(),
            config(caption_dropout=0.5, lora_rank=rank),
            empty_caption=tf.constant(tokenize([""])[0]),
            text_encoder=text_encoder,
        )
        for rank in (0, 2)
    ]
    batch, step = batch_of(0), tf.constant(1, tf.int64)
    for subject in subjects:
        trained = {id(v) for v in subject.variables}
        assert not trained & {id(v.value) for v in text_encoder.weights}
    assert len(subjects[0].variables) == len(subjects[0].diffusion_model.trainable_variables)
    # No attention, no adapters: the text encoder's own are left alone.
    assert subjects[1].variables == []
    empty, context = (
        text_encoder(tf.cast(tokens, tf.int32))
        for tokens in (tf.constant(tokenize([""])), batch["tokens"])
    )
    with_contexts = FineTuner(
        subjects[0].diffusion_model,
        small_runs.preset(),
        config(caption_dropout=0.5),
        empty_caption=empty[0],
    )
    expected = float(with_contexts.loss({**batch, "context": context}, step))
    del batch["context"]
    assert float(subjects[0].loss(batch, step)) == pytest.approx(expected, rel=1e-5)


def test_checkpoints_and_history_may_be_remote() -> None:
    """`ram://` is opened through the same interface as `gs://`."""
    history = None
    for steps in (2, 4):
        subject, _ = spied_on(steps=steps, checkpoint_every_steps=1)
        subject.train_step = lambda batch, stop, s=subject: (None, None, s.step.assign_add(1))
        history = subject.train(batches_from, "ram://run/checkpoints")
        assert int(subject.step) == steps
    assert [r.step for r in history] == [1, 2, 3, 4]
    found = tf.io.gfile.glob("ram://run/checkpoints/ckpt-*.index")
    assert sorted(name.rpartition("/")[2] for name in found) == ["ckpt-3.index", "ckpt-4.index"]


def with_variants(batch: Batch, variants: int) -> Batch:
    """Every caption with variants that differ by their number."""
    context = tf.stack([batch["context"] + float(v) for v in range(variants)], 1)
    tokens = tf.stack([batch["tokens"] + v for v in range(variants)], 1)
    return {**batch, "context": context, "tokens": tokens}


def test_each_example_draws_a_variant_of_its_caption_by_seed_and_step() -> None:
    batch = {**batch_of(0), "context": tf.zeros((4, 77, 8))}
    drawn: dict[int, list[tuple[float, ...]]] = {}
    for seed in (3, 4, 3):
        subject, spy = spied_on(caption_dropout=0.0, seed=seed)
        for step in range(30):
            subject.loss(with_variants(batch, 3), tf.constant(step, tf.int64))
        chosen = [tuple(context[:, 0, 0].tolist()) for _, _, context in spy.seen]
        assert drawn.setdefault(seed, chosen) == chosen
    assert drawn[3] != drawn[4]
    counts = np.bincount(np.array(drawn[3], int).ravel(), minlength=3)
    assert counts.min() > 25


def test_variants_change_nothing_else_that_is_random() -> None:
    subject, _ = spied_on()
    batch, step = batch_of(0), tf.constant(5, tf.int64)
    same = {**batch, **{n: tf.stack([batch[n]] * 3, 1) for n in ("context", "tokens")}}
    assert float(subject.loss(same, step)) == float(subject.loss(batch, step))
    # A part of the batch draws what it does in the whole.
    several = with_variants(batch, 3)
    parts = [{name: value[i : i + 2] for name, value in several.items()} for i in (0, 2)]
    losses = [float(subject.loss(part, step, 2 * i)) for i, part in enumerate(parts)]
    assert sum(losses) == pytest.approx(float(subject.loss(several, step)), rel=1e-6)
