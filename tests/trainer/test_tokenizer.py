"""Both tokenizers against each other and against KerasCV's."""

import gzip
import hashlib
import html
import random
import sys
import unicodedata
from collections.abc import Iterator
from html.entities import html5
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from storage.plain_text import NEWER_CASE, plain
from trainer.text import tokenizer
from trainer.text.graph_plain import GraphPlain
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.text.tokenizer import END_OF_TEXT, START_OF_TEXT, token_count, tokenize

# ruff: noqa: RUF001
# Letters that look like others belong here.
CAPTIONS = [
    "",
    "   ",
    "a drawing of a round blue creature with horns",
    "A  DRAWING\tof\na Round\u3000creature\u2028!",
    "it's they're we'll I'M don't DOG'S 'sd",
    "1234 4.5 ½ Ⅷ ㎏ ٣٤ x2 !!! ... ?!? --- a-b_c",
    "The quick brown fox " * 30,
    "a" * 1000,
    "!" * 300,
    "supercalifragilisticexpialidocious" * 20,
    "Ein grüner Drache, naïve café, Ærøskøbing, ŁÓDŹ, İstanbul, DİYARBAKIR ISPARTA",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ ΑΣ. ᾼ ΐ",
    "Маленькое СИНЕЕ существо с рогами",
    "יצור כחול עגול",
    "مخلوق أزرق مستدير ذو قرون",
    "सींग वाला एक गोल नीला जीव",
    "สัตว์กลมสีฟ้ามีเขา",
    "角のある丸い青い生き物の絵、カタカナ。",
    "뿔이 달린 둥근 파란 생물",
    "一幅有角的圆形蓝色生物的画",
    "🐉🔥 a dragon 👩‍👩‍👧‍👦 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷 👍🏽",
    "𝔣𝔯𝔞𝔨𝔱𝔲𝔯 𐐀𐐨 𒀀 \U000e0041 \U00031350 \U0001fae8",
    "e\u0301 \u0323\u0301 a\u200bb\u200dc\ufeffd \u00ad",
    "\ufeffleading mark",
    "a\x00b \x00 c\x00",
    "\x1c\x1fstripped\x1d but\x1ckept\x1e",
    "\ufffd \ufffd\ufffd a\ufffd",
    "'ſ ſ don'ſ",
    "ᾳ a\u0345b \u0345c \u0344\u0345\u0346 '\u0345s",
    "<|startoftext|> a <|endoftext|><|ENDOFTEXT|> <|endoftext| > <start_of_text> <|ſtartoftext|>",
    "</w> a</w> <w>",
    "fish &amp; chips &amp;amp; &amp;amp;amp; &lt;b&gt; &quot;q&quot; &apos;s",
    "&copy &copy; &copyx &notit; &notin; &ampx &amp;lt; &sub &sube; &NotEqualTilde; &fjlig;",
    "& && &; &# &#; &#x; &x &unknown; &Aacute &AACUTE; &CounterClockwiseContourIntegral;",
    "&#65; &#x41 &#X00041; &#0065;x &#65x &#0; &#1; &#13;b &#128; &#x9f; &#xD800; &#xfffe;",
    "&#1114111; &#1114112; &#x10FFFF; &#x110000; &#99999999999; &#x99999999999; &#000000000000065;",
    "&#128009; &#x1F409; caf&eacute; &Eacute;COLE &#x130;",
    "&" + "a" * 31 + "; &" + "é" * 40 + "; &a\tb; &a b",
]

_BLOCKS = [
    *[(0x20, 0x7F)] * 4,
    (0x00, 0x20),
    (0xA0, 0x250),
    (0x370, 0x530),
    (0x5D0, 0x5EB),
    (0x600, 0x700),
    (0x900, 0xD80),
    (0xE00, 0xE80),
    (0x10A0, 0x1200),
    (0x1E00, 0x2070),
    (0x2070, 0x2400),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0xA640, 0xA7FF),
    (0xAC00, 0xD7A4),
    (0xF900, 0xFFFF),
    (0x10000, 0x11FFF),
    (0x1D400, 0x1D7FF),
    (0x1F1E6, 0x1FAFF),
    (0x0, 0xD800),
    (0xE000, 0x110000),
]


def _random_captions(count: int) -> Iterator[str]:
    rng = random.Random(20)
    names = list(html5)
    words = " ".join(CAPTIONS).split()
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 14)):
            kind = rng.random()
            if kind < 0.3:
                parts.append(rng.choice(words))
            elif kind < 0.4:
                parts.append("&" + rng.choice(names) + rng.choice(["", ";", "x"]))
            elif kind < 0.45:
                number = rng.randint(0, rng.choice([300, 70_000, 1_200_000]))
                parts.append(rng.choice([f"&#{number};", f"&#{number}", f"&#x{number:x};"]))
            else:
                first, last = rng.choice(_BLOCKS)
                codes = (rng.randrange(first, last) for _ in range(rng.randint(1, 8)))
                parts.append("".join(map(chr, codes)))
            parts.append(rng.choice([" ", " ", "", "\t", "\u3000", "\x1c"]))
        yield "".join(parts)


ALL_CAPTIONS = [*CAPTIONS, *_random_captions(600)]


@pytest.fixture(scope="module")
def graph() -> GraphTokenizer:
    return GraphTokenizer()


def _strings(texts: list[str] | list[bytes]) -> tf.Tensor:
    # Not by way of a NumPy string array, which drops trailing NULs.
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return tf.constant(np.array(encoded, object), tf.string, shape=[len(texts)])


def _differing(actual: np.ndarray, expected: np.ndarray, texts: list[str]) -> list[str]:
    assert actual.dtype == expected.dtype == np.int32
    assert actual.shape == expected.shape == (len(texts), 77)
    return [ascii(texts[i]) for i in np.flatnonzero((actual != expected).any(axis=1))]


def _merges_file(path: Path) -> str:
    """The merges in the format, and under the name, that OpenAI publishes them."""
    from keras_cv.src.models.stable_diffusion.clip_tokenizer import bytes_to_unicode

    names = list(bytes_to_unicode().values())
    names += [f"{name}</w>" for name in names]
    lines = ["#version: 0.2"]
    for left, right in tokenizer.merges():
        lines.append(f"{names[left]} {names[right]}")
        names.append(names[left] + names[right])
    assert len(set(names)) == START_OF_TEXT
    file = path / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(file)


def _as_ftfy_left_it(caption: str) -> str:
    """What KerasCV's tokenizer, which unescapes entities twice, takes for the plain caption."""
    return html.escape(html.escape(plain(caption)))


def _lowered_alike_by_every_python(captions: list[str]) -> list[str]:
    """Captions on which KerasCV, which lower-cases as its Python does, is a reference."""
    if sys.version_info < (3, 11):
        return captions
    alike = [text for text in captions if not NEWER_CASE.search(html.unescape(text))]
    assert len(alike) > 0.8 * len(captions)
    return alike


def test_known_ids() -> None:
    # From the READMEs of CLIP's and of the library's repositories.
    rows = tokenize(["A person riding a motorcycle", "Hi there"])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 77)
    assert rows[0, :7].tolist() == [49406, 320, 2533, 6765, 320, 10297, 49407]
    assert rows[1, :4].tolist() == [49406, 1883, 997, 49407]
    assert (rows[0, 7:] == 49407).all()


def test_python_equals_keras_cv(tmp_path: Path) -> None:
    from keras_cv.src.models.stable_diffusion.clip_tokenizer import SimpleTokenizer

    reference = SimpleTokenizer(_merges_file(tmp_path))
    captions = [text for text in ALL_CAPTIONS if not any("\ud800" <= c <= "\udfff" for c in text)]
    captions = _lowered_alike_by_every_python(captions)
    expected = np.full((len(captions), 77), END_OF_TEXT, np.int32)
    for row, caption in zip(expected, captions, strict=True):
        ids = reference.encode(_as_ftfy_left_it(caption))
        assert token_count(caption) == len(ids), ascii(caption)
        row[: len(ids)] = ids[:77]
    expected[:, 76] = END_OF_TEXT
    assert _differing(tokenize(captions), expected, captions) == []


def test_graph_equals_python(graph: GraphTokenizer) -> None:
    actual = graph(_strings(ALL_CAPTIONS)).numpy()
    assert _differing(actual, tokenize(ALL_CAPTIONS), ALL_CAPTIONS) == []


@pytest.mark.slow
def test_graph_equals_keras_cv_on_ten_thousand_captions(
    graph: GraphTokenizer, tmp_path: Path
) -> None:
    from keras_cv.src.models.stable_diffusion.clip_tokenizer import SimpleTokenizer

    reference = SimpleTokenizer(_merges_file(tmp_path))
    captions = _lowered_alike_by_every_python(list(_random_captions(10_000)))
    expected = np.full((len(captions), 77), END_OF_TEXT, np.int32)
    for row, caption in zip(expected, captions, strict=True):
        ids = reference.encode(_as_ftfy_left_it(caption))[:76]
        row[: len(ids)] = ids
    assert _differing(graph(_strings(captions)).numpy(), expected, captions) == []


def test_graph_equals_python_on_every_entity(graph: GraphTokenizer) -> None:
    numbers = [*range(0x180), *range(0xFDC8, 0xFDF8), 0xD7FF, 0xDFFF, 0xE000, 0x1FFFF, 0x20000]
    captions = [f"a&{name}b" for name in html5] + [f"a&#{number};b" for number in numbers]
    assert _differing(graph(_strings(captions)).numpy(), tokenize(captions), captions) == []


def test_graph_splits_and_lowers_every_character_as_python(graph: GraphTokenizer) -> None:
    # Sixteen neighbours a caption: 48 bytes and a few words each, which no row cuts off.
    codes = [code for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    captions = ["".join(map(chr, codes[i : i + 16])) for i in range(0, len(codes), 16)]
    assert _differing(graph(_strings(captions)).numpy(), tokenize(captions), captions) == []


def test_graph_is_saved_with_its_vocabulary(graph: GraphTokenizer, tmp_path: Path) -> None:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = graph

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"tokens": self.tokenizer(text)}

    module = Module()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 1_500_000
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    tokens = serve(text=_strings(CAPTIONS))["tokens"]
    assert _differing(tokens.numpy(), tokenize(CAPTIONS), CAPTIONS) == []
    assert serve.structured_outputs["tokens"].shape.as_list() == [None, 77]


def test_graph_uses_core_operations_only(graph: GraphTokenizer) -> None:
    definition = graph._tokenize.get_concrete_function().graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    operations = {node.op for node in nodes}
    assert not {op for op in operations if "PyFunc" in op}
    library_of = {op: tf.raw_ops.__dict__.get(op) for op in operations}
    functions = {f.signature.name for f in definition.library.function}
    assert [op for op, raw in library_of.items() if raw is None and op not in functions] == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_graph_takes_any_batch(graph: GraphTokenizer, count: int) -> None:
    tokens = graph(_strings(["a blue creature"] * count))
    assert tokens.shape == (count, 77)
    assert (tokens.numpy() == tokenize(["a blue creature"])).all()


def test_graph_takes_bytes_that_are_no_text(graph: GraphTokenizer) -> None:
    texts = [b"\xff\xfea\xc3", b"\xed\xa0\x80x", b"\xe2\x80", b"\xf0\x9f\x98", b"a\x80b &am\xffp;"]
    as_python = [text.decode("utf-8", errors="replace") for text in texts]
    assert _differing(graph(_strings(texts)).numpy(), tokenize(as_python), as_python) == []


def test_lone_surrogates_count_as_replacement_characters() -> None:
    assert (tokenize(["a \ud83d b"]) == tokenize(["a \ufffd b"])).all()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("caf&eacute;", "caf\u00e9"),
        ("cafe&#769;", "caf\u00e9"),
        ("a \u201cbig\u201d dragon\u2019s cave", 'a "big" dragon\'s cave'),
        ("&ldquo;it&rsquo;s&rdquo;", '"it\'s"'),
        ("a \ufb01sh o\ufb03ce", "a fish office"),
        ("\uff22\uff49\uff47\u3000\uff11\uff01", "Big 1!"),
        ("\uff76\uff9e", "\u30ac"),
        ("vie\u0323\u0302t \u1ec7 e\u0302\u0323", "vi\u1ec7t \u1ec7 \u1ec7"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("\ufeffa dog", "a dog"),
        ("\u212bngstr\u00f6m", "\u00c5ngstr\u00f6m"),
    ],
)
def test_texts_that_look_the_same_have_the_same_tokens(
    graph: GraphTokenizer, text: str, same: str
) -> None:
    assert plain(text) == same
    assert (tokenize([text]) == tokenize([same])).all()
    assert (graph(_strings([text])).numpy() == tokenize([same])).all()


def test_the_graph_composes_as_unicode_says() -> None:
    rng = random.Random(5)
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    canonical = [c for c in characters if unicodedata.normalize("NFD", c) != c]
    marks = [c for c in characters if unicodedata.combining(c)]
    pools = [
        *(canonical, marks, [part for c in canonical for part in unicodedata.normalize("NFD", c)]),
        *("aeo ", [chr(code) for code in range(0x1100, 0x1200)], "\u0898\u1ac5\u0dcf\u0dca"),
    ]
    texts = ["".join(characters[i : i + 16]) for i in range(0, len(characters), 16)]
    texts += [unicodedata.normalize("NFD", character) + "x" for character in canonical]
    texts += [
        "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 9)))
        for _ in range(20_000)
    ]
    found = GraphPlain()(_strings(texts)).numpy()
    differing = [
        (ascii(text), ascii(here.decode()))
        for text, here in zip(texts, found, strict=True)
        if here.decode() != plain(text)
    ]
    assert differing == []


def test_truncation_keeps_the_end_token(graph: GraphTokenizer) -> None:
    for words, count in ((74, 76), (75, 77), (76, 78), (500, 502)):
        caption = "a " * words
        assert token_count(caption) == count
        (row,) = tokenize([caption])
        kept = min(words, 75)
        assert row.tolist() == [49406] + [320] * kept + [49407] * (76 - kept)
        assert (graph(_strings([caption])).numpy() == row).all()


def test_the_words_that_are_cut_are_named(graph: GraphTokenizer) -> None:
    captions = {
        "a " * 75: "",
        "a " * 75 + "B's cat": "b 's cat",
        # The last word is of three tokens, of which one fits.
        "a " * 74 + "supercalifragilistic": "supercalifragilistic",
        "a " * 80 + "\u201cend\u201d": 'a a a a a " end "',
        "": "",
    }
    assert [tokenizer.cut_words(caption) for caption in captions] == list(captions.values())
    found = graph.cut_words(_strings([*captions, *ALL_CAPTIONS])).numpy()
    expected = [*captions.values(), *map(tokenizer.cut_words, ALL_CAPTIONS)]
    assert [words.decode() for words in found] == expected
    for caption, words in zip(ALL_CAPTIONS, expected[len(captions) :], strict=True):
        assert bool(words) == (token_count(caption) > 77)
    assert graph.cut_words(_strings([])).shape == (0,)


def test_a_number_too_long_for_int_is_replaced() -> None:
    digits = "9" * 5000
    assert (tokenize([f"&#{digits}; a"]) == tokenize(["\ufffd a"])).all()
    assert (tokenize([f"&#{'0' * 5000}65;"]) == tokenize(["a"])).all()
    with pytest.raises(ValueError, match="4300"):
        html.unescape(f"&#{digits};")


def test_max_length(graph: GraphTokenizer) -> None:
    assert tokenize(["a b c"], max_length=4).tolist() == [[49406, 320, 321, 49407]]
    short = GraphTokenizer(max_length=2)
    assert short(_strings(["a b c", ""])).numpy().tolist() == [[49406, 49407]] * 2
    for call in (lambda: tokenize(["a"], max_length=1), lambda: GraphTokenizer(max_length=1)):
        with pytest.raises(ValueError, match="max_length is 1; it must be at least 2"):
            call()


def test_a_single_caption_is_refused() -> None:
    with pytest.raises(TypeError, match="pass a list"):
        tokenize("a blue creature")


def test_the_merges_are_those_of_clip() -> None:
    merges = tokenizer.merges()
    assert list(merges.values()) == list(range(512, 49406))
    # As little-endian uint16 pairs, of OpenAI's bpe_simple_vocab_16e6.txt.gz.
    assert hashlib.sha256(np.array(list(merges), "<u2").tobytes()).hexdigest() == (
        "88d5677a60bb2d33e2c2b0e57fcd83b2b64fe832ff26e0395aff9a749db6f546"
    )


def test_captions_come_back_from_their_tokens() -> None:
    captions = ["a BLUE creature, with  horns!", "caf\u00e9 \U0001f409", "1 2", ""]
    expected = ["a blue creature , with horns !", "caf\u00e9 \U0001f409", "1 2", ""]
    assert list(map(tokenizer.caption_of, tokenize(captions))) == expected
    cut_inside_a_character = tokenize(["\U00013000"], max_length=3)[0]
    assert tokenizer.caption_of(cut_inside_a_character) == "\ufffd"


def test_newer_letters_keep_their_case_on_every_python(graph: GraphTokenizer) -> None:
    ids = {
        "\u2c2f": [158, 108, 363],
        "\U00010570 a": [172, 238, 243, 364, 320],
        "\u0391\u03a3\u0898\u0391": [138, 109, 139, 480, 156, 95, 502, 138, 365],
        "\u0391\u03a3\u1734\u0391": [138, 109, 139, 481, 157, 250, 368, 138, 365],
        "\U00010570\u03a3": [172, 238, 243, 108, 139, 481],
    }
    rows = tokenize(list(ids))
    for caption, row in zip(ids, rows, strict=True):
        expected = [START_OF_TEXT, *ids[caption], END_OF_TEXT]
        assert row[: len(expected)].tolist() == expected, ascii(caption)
    assert _differing(graph(_strings(list(ids))).numpy(), rows, list(ids)) == []


def test_every_character_beside_a_sigma_is_lowered_as_in_the_graph(graph: GraphTokenizer) -> None:
    # Not what becomes white space, which the graph collapses only where it splits.
    codes = [code for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    characters = [c for c in map(chr, codes) if not (c.isspace() or plain(c)[:1].isspace())]
    for context in ("\u0391\u03a3{}\u0391", "\u0391{}\u03a3", "x {}\u03a3"):
        texts = [context.format(character) for character in characters]
        lowered = graph._clean(_strings(texts)).numpy()
        differing = [
            ascii(text)
            for text, low in zip(texts, lowered, strict=True)
            if low.decode() != tokenizer._clean(text)
        ]
        assert differing == []


def test_ids_are_the_same_on_every_python() -> None:
    """A caption ingested on one stack may be drawn on the other."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    by_sixteen = ["".join(characters[i : i + 16]) for i in range(0, len(characters), 16)]
    sigmas = [f"\u0391\u03a3{c}\u0391 {c}\u03a3" for c in characters[:0x30000]]
    digests = [
        hashlib.sha256(tokenize(captions).astype("<i4").tobytes()).hexdigest()
        for captions in (ALL_CAPTIONS, by_sixteen, sigmas)
    ]
    # As the old stack's Python 3.10 gave them with its own lower() and Unicode data.
    assert digests == [
        "a82b7c2267eeec3e22ebff0ae8edf2c1f26f1cf0a4098aa01d4f6f56cc02853c",
        "f992aa52d60970a66f4884ef7688f42ae1c599afae58adf45bd1ceea7b66b5a1",
        "9deef810e01916fc6eac69c1a64a182c63314254b13c8eb05dadd4df3661d302",
    ]
