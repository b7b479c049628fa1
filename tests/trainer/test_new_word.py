"""A new word: its tokens, its vectors, which alone are trained, and their file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import small_runs
import tensorflow as tf
from small_runs import WORD, batch_with_word

from trainer.diffusion.noise_schedule import NoiseSchedule, timestep_embedding
from trainer.networks.new_vectors import token_embedding, with_vectors
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.text.new_word import FIRST_NEW_ID, NewWord
from trainer.text.tokenizer import (
    END_OF_TEXT,
    caption_of,
    cut_words,
    has_word,
    new_word,
    token_count,
    tokenize,
)
from trainer.training.fine_tuner import FineTuner
from trainer.weights import diffusers_export
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError
from trainer.weights.learned_embeds import read_learned_embeds, write_learned_embeds

ANIMAL = tokenize(["animal"])[0, 1]
TRICKY = [
    "a photo of a <creature>",
    "(<creature>)! <Creature><CREATURE>'s x<creature>y",
    "&lt;creature&gt; &#60;creature> é<creature>é",
    "skz skz skz riskz skzdog skz. skz_ Skz's skz\u0301 éskz skz9 skz,skz",
    "s_s_ xs_s_ _s_s a_s",
    "",
    "<creature \ufdd0 &#xfdd0; <|endoftext|>",
    " " + "<creature>" * 60,
    "İ<creature>\u0345<creature>\n\n<creature>",
]


@pytest.mark.parametrize("token", ["<creature>", "skz"])
def test_the_graph_finds_the_word_where_python_does(token: str) -> None:
    word = new_word(token, "animal", 3)
    graph, texts = GraphTokenizer(word=word), tf.constant(TRICKY)
    tokens = tokenize(TRICKY, word=word)
    np.testing.assert_array_equal(graph(texts), tokens)
    assert [cut_words(text, word=word).encode() for text in TRICKY] == [
        *graph.cut_words(texts).numpy()
    ]
    assert (tokens >= FIRST_NEW_ID).any()


def test_the_word_is_whole_and_each_vector_a_token() -> None:
    assert NewWord("<creature>", "animal", ANIMAL, 3) == WORD
    row = tokenize(["(a <CREATURE>), x"], word=WORD)[0]
    before, behind = tokenize(["(a"])[0, 1:3], tokenize(["), x"])[0, 1:3]
    expected = [49406, *before, 49408, 49409, 49410, *behind, END_OF_TEXT]
    assert [*row[: len(expected)]] == expected
    assert caption_of(row, WORD) == "( a <creature> ), x"
    # Nothing else changes.
    np.testing.assert_array_equal(tokenize(["a dog's"], word=WORD), tokenize(["a dog's"]))
    assert token_count("<creature> " * 25, WORD) == 77
    assert cut_words("<creature> " * 25, word=WORD) == ""
    assert cut_words("<creature> " * 26, word=WORD) == "<creature>"
    assert token_count("<creature> " * 26, WORD) == 80
    known = WORD.as_initial(row)
    assert [*known[3:6]] == [ANIMAL] * 3
    assert known.max() == END_OF_TEXT


@pytest.mark.parametrize(
    ("text", "there"), [("skz.", True), ("riskz", False), ("skz9", False), ("(Skz)", True)]
)
def test_a_word_of_letters_is_no_part_of_another(text: str, there: bool) -> None:
    assert has_word(text, new_word("skz", "animal", 1)) is there


@pytest.mark.parametrize(
    ("token", "initial", "said"),
    [
        ("a b", "animal", "token must be one word"),
        ("x&nbsp;y", "animal", "token must be one word"),
        ("", "animal", "token must be one word"),
        ("Dog", "animal", "token is already in the vocabulary: .* <dog>"),
        ("a<|endoftext|>", "animal", "token must not contain"),
        ("<x>", "zzqq", "initial must be .* one token .* is 3"),
        ("<x>", " ", "initial must be a word .* is 0"),
        ("<x>", "<|endoftext|>", "initial must be a word"),
    ],
)
def test_what_can_be_no_word_is_said(token: str, initial: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        new_word(token, initial, 1)


def subject(**overrides: float) -> FineTuner:
    """Trains the word on the small networks."""
    return small_runs.tuner(plain=True, word=True, weight_decay=0.0, **overrides)


def test_at_the_start_the_word_is_its_initial_word() -> None:
    tuner = subject()
    tokens = tokenize(["a <creature>, so"], word=WORD)
    ours = tuner.text_encoder(tf.constant(tokens)).numpy()
    np.testing.assert_array_equal(ours, tuner.text_encoder(WORD.as_initial(tokens)).numpy())


def batches(first_step: int) -> Iterator[dict[str, tf.Tensor]]:
    while True:
        yield batch_with_word(first_step)
        first_step += 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[FineTuner, list[np.ndarray], list[np.ndarray]]:
    """After six steps; all weights as they were before them; all that training left behind."""
    tuner = subject()
    frozen = [w.numpy() for model in tuner._models for w in model.weights]
    tuner.train(batches, str(tmp_path_factory.mktemp("whole")))
    return tuner, frozen, small_runs.state(tuner)


def test_the_vectors_alone_are_trained(trained) -> None:
    tuner, frozen, _ = trained
    weights = [w for model in tuner._models for w in model.weights]
    table = token_embedding(tuner.text_encoder).embeddings
    before = table.numpy()
    assert [v.shape for v in tuner.variables] == [(3, 8)]
    state = [v.shape for some in tuner.optimizer.state.values() for v in some]
    assert max(shape.num_elements() for shape in state) == 3 * 8
    learned = tuner.variables[0].numpy()
    # By about the learning rate in each step, and each by its own gradient: they were equal.
    assert np.abs(learned - before[FIRST_NEW_ID:]).min() > 1e-4
    assert np.abs(learned[0] - learned[1]).max() > 1e-4
    for old, new in zip(frozen, weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    average = tuner.optimizer.averages[0].numpy()
    with tuner.averaged():
        drawn = table.numpy()
    np.testing.assert_array_equal(drawn[:FIRST_NEW_ID], before[:FIRST_NEW_ID])
    np.testing.assert_array_equal(drawn[FIRST_NEW_ID:], average)
    np.testing.assert_array_equal(tuner.variables[0].numpy(), learned)
    np.testing.assert_array_equal(table.numpy(), before)
    tuner.assign_averages()
    np.testing.assert_array_equal(table.numpy(), drawn)
    tokens = tf.constant(tokenize(["a <creature>"], word=WORD))
    embedded = token_embedding(tuner.text_encoder)(tokens).numpy()
    np.testing.assert_array_equal(embedded[0, 2:5], average)


def test_the_loss_is_that_of_the_written_out_computation() -> None:
    tuner = subject(caption_dropout=0.0)
    rng = np.random.default_rng(5)
    tuner.variables[0].assign(rng.normal(0, 0.1, (3, 8)))
    given, step = batch_with_word(4), tf.constant(4, tf.int64)
    random = tuner._random_values(step, given["latent/mean"].shape[1:], 1, stream=0)
    preset = small_runs.preset()
    encoder = BaseModel.locate(preset, 64, "random").build("text_encoder")
    encoder = with_vectors(encoder, preset, tuner.variables[0].numpy())
    context = encoder(given["tokens"]).numpy()
    mean, log_variance = (given[f"latent/{n}"].numpy() for n in ("mean", "log_variance"))
    latent = 0.18215 * (mean + np.exp(0.5 * log_variance) * random.posterior.numpy())
    alpha_bar = NoiseSchedule.of(preset).alpha_bar(random.timesteps).numpy()
    noise = random.noise.numpy()
    noisy = np.sqrt(alpha_bar) * latent + np.sqrt(1 - alpha_bar) * noise
    time = timestep_embedding(random.timesteps, preset.diffusion_model.timestep_width)
    inputs = [tf.constant(x, tf.float32) for x in (noisy, time, context)]
    predicted = tuner.diffusion_model(inputs).numpy()
    expected = np.mean((noise - predicted) ** 2)
    assert float(tuner.loss(given, step)) == pytest.approx(expected, rel=1e-5)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, tmp_path: Path) -> None:
    tuner = subject()
    tuner.train(batches, str(tmp_path), until=2)
    # As if it were another process: all that training changes is in the checkpoint.
    moments = itertools.chain.from_iterable(tuner.optimizer.state.values())
    for variable in (*tuner.variables, *moments, tuner.step):
        variable.assign(tf.zeros_like(variable))
    tuner.train(batches, str(tmp_path))
    assert tuner.steps_done == 6
    for ours, theirs in zip(small_runs.state(tuner), trained[2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_file_is_what_others_read_and_is_read_back(tmp_path: Path) -> None:
    vectors = np.arange(24, dtype=np.float32).reshape(3, 8)
    write_learned_embeds(str(tmp_path), WORD, vectors, {"modelspec.title": "<creature>"})
    path = str(tmp_path / "learned_embeds.safetensors")
    stored = safetensors.numpy.load_file(path)
    assert [*stored] == ["<creature>"]
    np.testing.assert_array_equal(stored["<creature>"], vectors)
    np.testing.assert_array_equal(read_learned_embeds(path, 8, 3), vectors)
    # A1111's name; and one vector, as diffusers' first scripts saved it.
    for tensors, number in (({"emb_params": vectors}, 3), ({"<x>": vectors[0]}, 1)):
        safetensors.numpy.save_file(tensors, path)
        np.testing.assert_array_equal(read_learned_embeds(path, 8, number), vectors[:number])
    for asked, said in (
        ((768, 1), r"shape \[8\], but the text encoder needs width 768"),
        ((8, 2), "has 1 vectors: set word.vectors to 1"),
    ):
        with pytest.raises(WeightsError, match=said):
            read_learned_embeds(path, *asked)
    safetensors.numpy.save_file({"clip_g": vectors, "clip_l": vectors}, path)
    with pytest.raises(WeightsError, match="has 2 tensors"):
        read_learned_embeds(path, 8, 3)
    Path(path).write_bytes(b"no")
    with pytest.raises(WeightsError, match="missing or damaged"):
        read_learned_embeds(path, 8, 3)
    with pytest.raises(WeightsError, match=r"is not a \.safetensors file"):
        read_learned_embeds("word.pt", 8, 3)


def test_diffusers_tokenizer_gets_a_token_for_each_vector(tmp_path: Path) -> None:
    diffusers_export._write_tokenizer(tmp_path / "with", END_OF_TEXT, WORD)
    diffusers_export._write_tokenizer(tmp_path / "without", END_OF_TEXT, None)
    added = json.loads((tmp_path / "with" / "added_tokens.json").read_text())
    assert added == {"<creature>": 49408, "<creature>_1": 49409, "<creature>_2": 49410}
    files = [{p.name for p in (tmp_path / name).iterdir()} for name in ("with", "without")]
    assert files[0] - files[1] == {"added_tokens.json"}


def test_the_word_is_kept_as_text() -> None:
    assert NewWord.of_json(WORD.to_json()) == WORD
    assert NewWord.of_json(None) is NewWord.of_fields({}) is None
    assert NewWord.of_fields(dataclasses.asdict(WORD)) == WORD
