"""Finds the files of a configuration and a split, by the hub's conventions.

The README.md of a dataset may list them in its YAML head (`configs`); otherwise the names of the
folders and files decide. These are the rules of the hub's own `datasets` library.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fsspec.utils import glob_translate

from components.caption_example_gen.sources.base import DatasetError
from components.caption_example_gen.sources.card import card_field
from storage.addresses import redacted
from storage.errors import one_line

ALL = "all"
"""The split that stands for all of them."""
TRAIN = "train"
"""The split of everything that is not marked as another split."""

_DEFAULT_CONFIG = "default"
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# A keyword counts only if no letter touches it: `train-0.parquet` and `train1`, but not `trained`.
_MARKS = {
    split: re.compile(rf"(?:^|[\W\d_])(?:{'|'.join(words)})(?:[\W\d_]|$)")
    for split, words in _KEYWORDS.items()
}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_MAGIC = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class Selection:
    """The files of a configuration and split.

    Attributes:
        files: The files to read, sorted.
        left_out: All other files, sorted.
        config: Name of the configuration; "" if the dataset has none.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]
    config: str


@dataclasses.dataclass(frozen=True)
class _Config:
    """An entry of `configs` in the README."""

    name: str
    folder: str
    patterns: Mapping[str, tuple[str, ...]] | None
    default: bool


def says_split(name: str) -> bool:
    """Whether a name is the name of a split, or contains one."""
    return any(mark.search(name) for mark in _MARKS.values())


def split_called(word: str) -> str:
    """The split that a value such as `val` or `Training` stands for; or else the value itself."""
    lower = word.strip().lower()
    return next((split for split, words in _KEYWORDS.items() if lower in words), lower)


def is_split(word: str) -> bool:
    """Whether a value is the word for a split."""
    return split_called(word) in _KEYWORDS


def wanted_splits(split: str) -> frozenset[str] | None:
    """The splits that `--dataset-split` names, as `split_called` gives them; `None` for all."""
    parts = frozenset(map(split_called, split.split("+")))
    return None if parts == {ALL} else parts


def split_said(value: object) -> str:
    """The split that a record names; `train` if it names none."""
    return split_called(value) if isinstance(value, str) and value.strip() else TRAIN


def records_remark(column: str, splits: Iterable[str]) -> str:
    """A remark for users that only some records are read, by the value of a column."""
    return f"; only the records whose {column!r} is {'+'.join(sorted(splits))} are read"


def no_such_records(shown: str, column: str, there: Mapping[str, int]) -> DatasetError:
    """The error for a split that no record belongs to.

    Args:
        shown: Name of the dataset.
        column: The column with the split.
        there: Number of records by split.
    """
    counted = ", ".join(f"{name!r} ({count:,})" for name, count in sorted(there.items()))
    return DatasetError(
        f"dataset {shown!r} has no record of the requested split: {column!r} is {counted}; "
        f"set --dataset-split to one, several joined by +, or {ALL!r}"
    )


def select_files(
    paths: Sequence[str],
    *,
    card: str | None,
    config: str,
    split: str,
    shown: str,
    by_folder_only: bool = False,
) -> Selection:
    """Chooses the files of one configuration and split.

    Args:
        paths: The dataset's files of one kind, relative to it.
        card: Text of its README.md, if it has one.
        config: Name of the configuration; "" for the default or only one. If the README names
            none, a top-level folder.
        split: Name of a split, several joined by `+`, or `all`.
        shown: Name of the dataset in messages.
        by_folder_only: Whether to ignore the names of files, which say nothing about splits for
            pictures.

    Returns:
        The chosen files, and those left out.

    Raises:
        DatasetError: The configuration or split does not exist, there are several configurations
            and no default, or the README's head is malformed or names files that do not exist.
    """
    ordered = sorted(set(paths))
    found = _found(ordered, card, config, shown, by_folder_only)
    files = _of_split(found.splits, found.everything, split, found.config, shown)
    kept = set(files)
    return Selection(files, tuple(path for path in ordered if path not in kept), found.config)


def are_of_one_split(paths: Sequence[str], *, card: str | None, config: str, shown: str) -> bool:
    """Whether all files of a configuration are of one split, so that a column may divide them.

    Args:
        paths: See `select_files`.
        card: See `select_files`.
        config: See `select_files`.
        shown: See `select_files`.

    Raises:
        DatasetError: As in `select_files`, except for the split.
    """
    found = _found(sorted(set(paths)), card, config, shown, False)
    return sum(map(bool, found.splits.values())) == 1


class _Files(NamedTuple):
    """The files of a configuration, by split and all together."""

    config: str
    splits: Mapping[str, Sequence[str]]
    everything: Sequence[str]


def _found(
    ordered: Sequence[str], card: str | None, config: str, shown: str, by_folder_only: bool
) -> _Files:
    configs = _configs(card, shown)
    folders = {path.split("/", 1)[0] for path in ordered if "/" in path}
    if configs:
        chosen = _choose(configs, config, shown)
        return _Files(chosen.name, *_files_of(chosen, ordered, shown, by_folder_only))
    if not config or (config == _DEFAULT_CONFIG and config not in folders):
        everything = _not_special(ordered)
        return _Files("", _by_convention(everything, "", by_folder_only), everything)
    if config in folders:
        everything = _not_special(_inside(ordered, config))
        return _Files(config, _by_convention(everything, config, by_folder_only), everything)
    raise DatasetError(
        f"dataset {shown!r} has no configuration {config!r}: its README.md names none, and its "
        f"top-level folders are {_listed(folders)}; set --dataset-config to one of them, or leave "
        "it out"
    )


def _configs(card: str | None, shown: str) -> list[_Config]:
    """The configurations that a README's head names."""
    entries = card_field(card, "configs", shown)
    if entries is None:
        return []
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return [_config(entry, shown) for entry in entries]
    raise _malformed(shown, "a list of mappings", entries)


def _config(entry: Mapping[str, Any], shown: str) -> _Config:
    folder = entry.get("data_dir")
    return _Config(
        name=str(entry.get("config_name", _DEFAULT_CONFIG)),
        folder="" if folder is None else _normal(str(folder)),
        patterns=_patterns(entry.get("data_files"), shown),
        default=bool(entry.get("default", False)),
    )


def _patterns(given: Any, shown: str) -> dict[str, tuple[str, ...]] | None:
    """Patterns by split, from any of the notations that the hub allows."""
    if given is None:
        return None
    if isinstance(given, str):
        return {"train": (given,)}
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in given.items()]
    if isinstance(given, list) and given and all(isinstance(part, str) for part in given):
        return {"train": tuple(given)}
    if not isinstance(given, list) or not given:
        raise _malformed(shown, "data_files as a pattern or a list", given)
    patterns: dict[str, tuple[str, ...]] = {}
    for part in given:
        paths = part.get("path") if isinstance(part, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise _malformed(shown, "data_files with split and path", part)
        split = str(part.get("split", "train"))
        patterns[split] = (*patterns.get(split, ()), *paths)
    return patterns


def _malformed(shown: str, wanted: str, found: object) -> DatasetError:
    return DatasetError(
        f"`configs` in README.md of dataset {shown!r} must be {wanted}, not {str(found)[:80]!r}"
    )


def names_configs(card: str | None, shown: str) -> bool:
    """Whether a dataset's card assigns files to configurations and splits."""
    return bool(_configs(card, shown))


def _choose(configs: Sequence[_Config], wanted: str, shown: str) -> _Config:
    by_name = {config.name: config for config in configs}
    if wanted:
        if wanted in by_name:
            return by_name[wanted]
        raise DatasetError(
            f"dataset {shown!r} has no configuration {wanted!r}: there are {_listed(by_name)}; "
            "set --dataset-config to one of them"
        )
    defaults = [config for config in configs if config.default]
    if len(defaults) == 1:
        return defaults[0]
    if len(by_name) == 1 or _DEFAULT_CONFIG in by_name:
        return by_name.get(_DEFAULT_CONFIG, configs[0])
    raise DatasetError(
        f"dataset {shown!r} has several configurations and no default: {_listed(by_name)}; set "
        "--dataset-config to one of them"
    )


def _files_of(
    config: _Config, paths: Sequence[str], shown: str, by_folder_only: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """A configuration's files, by split and all together."""
    if config.patterns is None:
        inside = _not_special(_inside(paths, config.folder))
        return _by_convention(inside, config.folder, by_folder_only), inside
    splits = {
        split: _matching(paths, config.folder, patterns, shown)
        for split, patterns in config.patterns.items()
    }
    return splits, sorted(set().union(*splits.values()))


def _matching(paths: Sequence[str], folder: str, patterns: Iterable[str], shown: str) -> list[str]:
    found: set[str] = set()
    there = set(paths)
    suffixes = {posixpath.splitext(path)[1] for path in paths}
    for pattern in patterns:
        if "://" in pattern:
            url = redacted(pattern)
            raise DatasetError(
                f"README.md of dataset {shown!r} names files by the URL {url!r}, outside the "
                "dataset: download them into a folder and give that folder"
            )
        full = _normal(posixpath.join(folder, pattern))
        if not _MAGIC.search(full):
            inside = {full} & there or set(_inside(paths, full))
            # `paths` lacks files of another kind, such as a table beside pictures.
            if not inside and posixpath.splitext(full)[1] in suffixes:
                raise DatasetError(
                    f"README.md of dataset {shown!r} names {full!r}, but there is no such file"
                )
            found |= inside
            continue
        try:
            regex = re.compile(glob_translate(full))
        except ValueError as error:
            raise DatasetError(
                f"README.md of dataset {shown!r} has the pattern {pattern!r}, which cannot be "
                f"used: {one_line(error)}"
            ) from error
        matched = [path for path in paths if regex.match(path)]
        found.update(matched if "__" in full else _not_special(matched))
    return sorted(found)


def _by_convention(paths: Sequence[str], folder: str, by_folder_only: bool) -> dict[str, list[str]]:
    """Files by split: as shards, else by folder, else by file name, else all are `train`."""
    start = len(folder) + 1 if folder else 0
    relative = {path: path[start:] for path in paths}
    shards: dict[str, list[str]] = {}
    if not by_folder_only:
        for path, name in relative.items():
            if shard := _SHARD.fullmatch(name):
                shards.setdefault(shard.group(1), []).append(path)
    if shards:
        return shards
    for level in (_folders, posixpath.basename)[: 1 if by_folder_only else 2]:
        marked = {
            split: [
                path
                for path, name in relative.items()
                if any(mark.search(part) for part in level(name).split("/"))
            ]
            for split, mark in _MARKS.items()
        }
        if any(marked.values()):
            return {split: files for split, files in marked.items() if files}
    return {"train": list(paths)} if paths else {}


def _of_split(
    splits: Mapping[str, Sequence[str]],
    everything: Iterable[str],
    wanted: str,
    config: str,
    shown: str,
) -> tuple[str, ...]:
    there = {split: files for split, files in splits.items() if files}
    if wanted == ALL and ALL not in there:
        return tuple(everything)
    files: set[str] = set()
    for split in (part.strip() for part in wanted.split("+")):
        if split in there:
            files.update(there[split])
            continue
        of = f"configuration {config!r} of dataset {shown!r}" if config else f"dataset {shown!r}"
        if split in splits:
            patterns = "README.md names files for it that do not exist"
            raise DatasetError(f"split {split!r} of {of} has no files: {patterns}")
        counted = [
            f"{name!r} ({len(found)} file{'s' * (len(found) != 1)})"
            for name, found in sorted(there.items())
        ]
        raise DatasetError(
            f"{of} has no split {split!r}: there are {', '.join(counted) or 'none'}; set "
            f"--dataset-split to one, several joined by +, or {ALL!r}"
        )
    return tuple(sorted(files))


def _inside(paths: Iterable[str], folder: str) -> list[str]:
    return [path for path in paths if path.startswith(f"{folder}/")] if folder else list(paths)


def _folders(path: str) -> str:
    # The hub's rules are case-sensitive, but pictures in Test/ are not meant for training.
    return posixpath.dirname(path).lower()


def _not_special(paths: Iterable[str]) -> list[str]:
    """The paths outside folders such as `__MACOSX`, as the hub reads a dataset."""
    return [
        path
        for path in paths
        if not any(part.startswith("__") for part in posixpath.dirname(path).split("/"))
    ]


def _normal(path: str) -> str:
    normal = posixpath.normpath(path)
    return "" if normal == "." else normal


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
