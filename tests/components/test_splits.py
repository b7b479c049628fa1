"""Configurations and splits by the hub's conventions."""

from __future__ import annotations

import textwrap

import pytest

from components.caption_example_gen.sources.base import DatasetError
from components.caption_example_gen.sources.splits import Selection, select_files


def _select(
    *paths: str,
    card: str | None = None,
    config: str = "",
    split: str = "train",
    by_folder_only: bool = False,
) -> Selection:
    if card is not None:
        card = f"---\n{textwrap.dedent(card)}---\n# Some pictures\n"
    selection = select_files(
        paths,
        card=card,
        config=config,
        split=split,
        shown="org/name",
        by_folder_only=by_folder_only,
    )
    assert sorted({*selection.files, *selection.left_out}) == sorted(paths)
    assert not set(selection.files) & set(selection.left_out)
    assert list(selection.files) == sorted(selection.files)
    return selection


def _fails(*paths: str, **given: str) -> str:
    with pytest.raises(DatasetError) as raised:
        _select(*paths, **given)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_without_a_hint_all_is_train() -> None:
    assert _select("b.parquet", "a.parquet").files == ("a.parquet", "b.parquet")
    assert _select("x/0001.jpg", "y/0002.jpg").left_out == ()
    # A keyword is a word, not a part of one.
    assert len(_select("trained.parquet", "contest.parquet", "Test.parquet").files) == 3
    assert _select("Train/a.jpg", "Test/b.jpg").files == ("Train/a.jpg",)
    assert _select("a.parquet", split="all", config="default").files == ("a.parquet",)


def test_shards_have_their_split_in_their_name() -> None:
    paths = (
        "data/train-00000-of-00002-0f1e.parquet",
        "data/train-00001-of-00002-0f1e.parquet",
        "data/held_out-00000-of-00001.parquet",
        "data/test-readme.parquet",
    )
    assert _select(*paths).files == paths[:2]
    assert _select(*paths, split="held_out").files == paths[2:3]
    assert _select(*paths, split="held_out+train").left_out == paths[3:]
    assert _select(*paths, split="all").left_out == ()


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.parquet", "train"),
        ("my-training_01.parquet", "train"),
        ("train1.tar", "train"),
        ("shards.val.tar", "validation"),
        ("dev-0.tar", "validation"),
        ("x/valid.parquet", "validation"),
        ("x/eval 3.parquet", "test"),
        ("testing.parquet", "test"),
        ("train/a.parquet", "train"),
        ("deep/my-validation/er/a.parquet", "validation"),
        ("evaluation/train.parquet", "test"),
    ],
)
def test_keywords_in_names(path: str, split: str) -> None:
    assert _select(path, split=split).files == (path,)


def test_folders_count_before_file_names() -> None:
    paths = ("test/train.parquet", "train/b.parquet", "val.parquet")
    assert _select(*paths).files == ("train/b.parquet",)
    assert _select(*paths, split="test").files == ("test/train.parquet",)
    assert "there are 'test' (1 file), 'train' (1 file)" in _fails(*paths, split="validation")


def test_names_of_pictures_say_nothing() -> None:
    paths = ("a test.jpg", "train.jpg", "val-1.jpg")
    assert _select(*paths, by_folder_only=True).files == paths
    folders = ("test/train.jpg", "train/a.jpg")
    assert _select(*folders, by_folder_only=True).files == ("train/a.jpg",)


def test_several_splits_and_all_of_them() -> None:
    paths = ("test.parquet", "train.parquet", "val.parquet", "zzz.parquet")
    assert _select(*paths, split="train + validation").files == ("train.parquet", "val.parquet")
    assert _select(*paths, split="all").files == paths
    assert "no split 'val': there are 'test' (1 file)" in _fails(*paths, split="train+val")
    assert "no split ''" in _fails(*paths, split="train+")


def test_a_top_level_folder_is_a_configuration() -> None:
    paths = ("cats/test/b.parquet", "cats/train/a.parquet", "dogs/a.parquet", "x.parquet")
    assert _select(*paths, config="cats").files == ("cats/train/a.parquet",)
    assert _select(*paths, config="cats").config == "cats"
    assert _select(*paths, config="cats", split="all").files == paths[:2]
    assert _select(*paths, config="dogs").files == ("dogs/a.parquet",)
    # The folder's own name is no hint once it is chosen.
    assert _select("test/a.parquet", "b.parquet", config="test").files == ("test/a.parquet",)
    message = _fails(*paths, config="birds")
    assert "top-level folders are 'cats', 'dogs'" in message
    assert "--dataset-config" in message


def test_folders_that_machines_leave_behind_are_left_out() -> None:
    paths = ("__MACOSX/a.parquet", "a.parquet")
    assert _select(*paths).left_out == ("__MACOSX/a.parquet",)
    assert _select(*paths, split="all").left_out == ("__MACOSX/a.parquet",)


_TWO = """
    license: mit
    configs:
    - config_name: small
      data_files:
      - split: train
        path: small/t*.parquet
      - split: rest
        path: [small/r.parquet, "extra/**"]
    - config_name: big
      data_dir: big
    """
_TWO_PATHS = (
    "big/test/a.parquet",
    "big/train/a.parquet",
    "extra/deep/e.parquet",
    "extra/e.parquet",
    "other.parquet",
    "small/r.parquet",
    "small/sub/t.parquet",
    "small/t1.parquet",
    "small/t2.parquet",
)


def test_the_readme_names_configurations() -> None:
    small = _select(*_TWO_PATHS, card=_TWO, config="small")
    assert small.files == ("small/t1.parquet", "small/t2.parquet")
    assert small.config == "small"
    rest = ("extra/deep/e.parquet", "extra/e.parquet", "small/r.parquet")
    assert _select(*_TWO_PATHS, card=_TWO, config="small", split="rest").files == rest
    every = _select(*_TWO_PATHS, card=_TWO, config="small", split="all")
    assert every.files == tuple(sorted((*rest, *small.files)))
    assert _select(*_TWO_PATHS, card=_TWO, config="big").files == ("big/train/a.parquet",)
    assert _select(*_TWO_PATHS, card=_TWO, config="big", split="all").files == _TWO_PATHS[:2]


def test_a_configuration_must_be_chosen_where_none_is_the_default() -> None:
    assert "no default: 'big', 'small'" in _fails(*_TWO_PATHS, card=_TWO)
    assert "there are 'big', 'small'" in _fails(*_TWO_PATHS, card=_TWO, config="huge")
    default = _TWO.replace("data_dir: big", "data_dir: big\n      default: true")
    assert _select(*_TWO_PATHS, card=default).config == "big"
    named = _TWO.replace("config_name: big", "config_name: default")
    assert _select(*_TWO_PATHS, card=named).config == "default"
    only = "configs:\n- config_name: one\n"
    assert _select("a.parquet", card=only) == Selection(("a.parquet",), (), "one")


@pytest.mark.parametrize(
    "data_files",
    ["a.parquet", "[a.parquet]", "{train: a.parquet}", "[{split: train, path: ./a*}]", "'?.p*'"],
)
def test_every_form_of_data_files(data_files: str) -> None:
    card = f"configs:\n- config_name: default\n  data_files: {data_files}\n"
    assert _select("a.parquet", "bb.parquet", card=card).files == ("a.parquet",)


def test_patterns_are_relative_to_the_data_dir_and_may_name_folders() -> None:
    card = """
        configs:
        - config_name: 1
          data_dir: ./v1/
          data_files: [{split: train, path: good}, {split: bad, path: "b[a-c]d/*"}]
        """
    paths = ("good/a.tar", "v1/bad/a.tar", "v1/bad/x/a.tar", "v1/good/a.tar", "v1/good/x/a.tar")
    assert _select(*paths, card=card, config="1").files == ("v1/good/a.tar", "v1/good/x/a.tar")
    assert _select(*paths, card=card, split="bad").files == ("v1/bad/a.tar",)


@pytest.mark.parametrize(
    ("data_files", "problem"),
    [
        ("https://example.org/a.parquet", "by the URL 'https://example.org/a.parquet'"),
        ("[a.parquet, gone.parquet]", "names 'gone.parquet', but there is no such file"),
        ("gone*.parquet", "split 'train' of configuration 'default'"),
        ("a**.parquet", "pattern 'a**.parquet'"),
        ("{train: 3}", "must be data_files with split and path"),
        ("[]", "must be data_files as a pattern or a list"),
        ("3", "must be data_files as a pattern or a list"),
    ],
)
def test_a_readme_that_names_no_files(data_files: str, problem: str) -> None:
    card = f"configs:\n- config_name: default\n  data_files: {data_files}\n"
    assert problem in _fails("a.parquet", card=card)


def test_files_of_another_kind_may_be_named_beside() -> None:
    card = "configs:\n- data_files: [{split: train, path: [x/metadata.csv, 'x/*.jpg']}]\n"
    assert _select("x/1.jpg", "y/2.jpg", card=card, by_folder_only=True).files == ("x/1.jpg",)


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# Only words\n---\nand a line\n---\n",
        "---\nlicense: mit\n---\n",
        "---\r\nlicense: mit\r\n---\r\nText",
        "---\njust words\n---\n",
    ],
)
def test_a_readme_may_say_nothing(card: str) -> None:
    selection = select_files(["a.parquet"], card=card, config="", split="train", shown="x")
    assert selection == Selection(("a.parquet",), (), "")


def test_a_broken_readme_is_an_error() -> None:
    assert "not valid YAML" in _fails("a.parquet", card="a: [1\n")
    assert "must be a list of mappings" in _fails("a.parquet", card="configs: some\n")


def test_no_files_have_no_splits() -> None:
    assert "there are none" in _fails()
