"""What is withdrawn is taken out of a dataset, with what is nearly the same."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from drawings import COPIES, drawing, saved
from ingested_rows import TWO_WORKERS, generate, read_rejects, read_split, sha256, write

from components.caption_example_gen import executor
from components.caption_example_gen.sources import DatasetSpec, dataset_fingerprint
from components.caption_validator.drift import KEPT, SET_ASIDE, outcomes_of
from components.withdrawn_report.losses import read_again
from storage.user_errors import UserError
from storage.withdrawn import Withdrawn, WithdrawnError, read_list

Rows = list[tuple[bytes, str]]


ORIGINALS = [drawing(seed) for seed in range(14)]
WITHDRAWN = (2, 5, 9)


def all_rows() -> Rows:
    rows = [(saved(image), f"drawing number {i}") for i, image in enumerate(ORIGINALS)]
    for i in WITHDRAWN:
        rows += [(copy(ORIGINALS[i]), f"{i}, {name}") for name, copy in COPIES.items()]
    return rows


ROWS = all_rows()
LEFT = [caption for i, (_, caption) in enumerate(ROWS[:14]) if i not in WITHDRAWN]


def as_parquet(folder: Path) -> Path:
    write(folder / "all.parquet", ROWS)
    return folder


def suffix(picture: bytes) -> str:
    return {b"\x89": ".png", b"\xff": ".jpg", b"R": ".webp"}[picture[:1]]


def as_caption_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(ROWS):
        Path(folder, f"{number:02}{suffix(picture)}").write_bytes(picture)
        Path(folder, f"{number:02}.txt").write_text(caption)
    return folder


def as_json_lines(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number, (picture, caption) in enumerate(ROWS):
        name = f"{number:02}{suffix(picture)}"
        Path(folder, name).write_bytes(picture)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    Path(folder, "metadata.jsonl").write_text("\n".join(lines))
    return folder


def as_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(as_caption_files(folder).iterdir()):
            archive.write(path, path.name)
    return folder.with_suffix(".zip")


def listed(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("# Asked for by mail.", "", *lines)))
    return path


def three_lines(picture: int = 2, row: int = 5, caption: int = 9) -> Sequence[str]:
    digest = sha256(ROWS[row][0])
    return (
        f"sha256:{sha256(ROWS[picture][0])} # asked by its painter",
        f"row:{sha256((digest + ROWS[row][1]).encode()).upper()} # a contract ended",
        f"caption: {ROWS[caption][1]}  # shows a person",
    )


@pytest.mark.parametrize(
    ("made", "near_duplicates"),
    [
        *(
            (made, "keep_together")
            for made in (as_parquet, as_caption_files, as_json_lines, as_zip)
        ),
        (as_parquet, "ignore"),
        (as_caption_files, "keep_one"),
    ],
)
def test_pictures_and_their_copies_are_set_aside_whatever_the_form(
    tmp_path: Path, made: Callable[[Path], Path], near_duplicates: str
) -> None:
    dataset = made(tmp_path / "set")
    withdrawn = listed(tmp_path / "withdrawn.txt", *three_lines())
    examples, rejects = generate(
        tmp_path,
        dataset,
        TWO_WORKERS if near_duplicates == "keep_one" else (),
        withdrawn=str(withdrawn),
        near_duplicates=near_duplicates,
        max_rejected_fraction=0.0,
    )
    found = [row for split in executor.SPLITS for row in read_split(examples, split)]
    assert sorted(row["caption"].decode() for row in found) == sorted(LEFT)
    aside = read_rejects(rejects)
    assert {row["reason"] for row in aside} == {"withdrawn"}
    expected = [ROWS[i][1] for i in WITHDRAWN] + [caption for _, caption in ROWS[14:]]
    assert sorted(row["caption"] for row in aside) == sorted(expected)
    assert rejects.get_int_custom_property("rejected_withdrawn") == 15
    assert rejects.get_int_custom_property("withdrawn_unmatched") == 0
    assert outcomes_of(examples) == {KEPT: 11, SET_ASIDE: 0}
    said = Withdrawn.read(rejects.uri)
    digests = {i: sha256(ROWS[i][0]) for i in WITHDRAWN}
    assert {row.caption: (row.entry, row.near) for row in said.rows} == {
        **{ROWS[i][1]: (number, "") for number, i in enumerate(WITHDRAWN)},
        **{
            caption: (
                WITHDRAWN.index(int(caption.split(",")[0])),
                digests[int(caption.split(",")[0])],
            )
            for _, caption in ROWS[14:]
        },
    }
    # The page about them finds their pictures there again.
    again = read_again(DatasetSpec(str(dataset)), said.rows)
    assert again == {sha256(ROWS[i][0]): ROWS[i][0] for i in (*WITHDRAWN, *range(14, 26))}
    assert [entry.reason for entry in said.entries] == [
        "asked by its painter",
        "a contract ended",
        "shows a person",
    ]


def test_the_others_are_what_they_would_be_without_them(tmp_path: Path) -> None:
    withdrawn = listed(tmp_path / "withdrawn.txt", *three_lines())
    write(tmp_path / "all" / "a.parquet", ROWS)
    write(tmp_path / "few" / "a.parquet", [row for row in ROWS if row[1] in LEFT])
    settings = {"max_rejected_fraction": 0.0}
    with_list, _ = generate(tmp_path, tmp_path / "all", withdrawn=str(withdrawn), **settings)
    without, _ = generate(tmp_path, tmp_path / "few", **settings)
    for split in executor.SPLITS:
        assert read_split(with_list, split) == read_split(without, split)


def test_every_caption_of_a_withdrawn_picture_goes(tmp_path: Path) -> None:
    again = [(ROWS[2][0], "another caption of it"), (ROWS[3][0], "a duplicate")]
    write(tmp_path / "set" / "a.parquet", [*ROWS[:6], *again], row_group_size=2)
    withdrawn = listed(tmp_path / "list", f"caption:{ROWS[2][1]} # asked for")
    examples, rejects = generate(tmp_path, tmp_path / "set", withdrawn=str(withdrawn))
    assert sorted(row["caption"] for row in read_rejects(rejects)) == [
        "another caption of it",
        ROWS[2][1],
    ]
    total = sum(len(read_split(examples, split)) for split in executor.SPLITS)
    assert total == 6


def test_what_is_not_there_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "set" / "a.parquet", ROWS[:6])
    withdrawn = listed(tmp_path / "list", f"sha256:{'0' * 64} # gone", *three_lines(2, 3, 4))
    with caplog.at_level("INFO"):
        _, rejects = generate(tmp_path, tmp_path / "set", withdrawn=str(withdrawn))
    assert "1 entries of dataset.withdrawn match no usable row" in caplog.text
    assert [entry.line for entry in Withdrawn.read(rejects.uri).unmatched] == [3]
    assert rejects.get_int_custom_property("withdrawn_unmatched") == 1


def test_with_nothing_left_the_run_stops(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", ROWS[:2])
    lines = [f"caption:{caption} # asked for" for _, caption in ROWS[:2]]
    with pytest.raises(UserError, match=r"nothing is left of dataset .*: 2 of its 2 rows"):
        generate(tmp_path, tmp_path / "set", withdrawn=str(listed(tmp_path / "list", *lines)))


def test_it_is_another_version_of_the_dataset(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", ROWS[:6])
    spec = DatasetSpec(str(tmp_path / "set"))
    one, two, three = three_lines()
    path = tmp_path / "list"

    def fingerprint(*lines: str) -> str:
        withdrawn = str(listed(path, *lines))
        return dataset_fingerprint(dataclasses.replace(spec, withdrawn=withdrawn))

    first = fingerprint(one)
    assert first != dataset_fingerprint(spec)
    assert fingerprint("# a remark", one) == first
    assert fingerprint(one, two) == fingerprint(two, one) != first
    assert fingerprint(three) != first
    prepared = fingerprint(one)
    listed(path, one, two)
    with pytest.raises(UserError, match="has changed since this run was prepared"):
        generate(tmp_path, tmp_path / "set", withdrawn=str(path), dataset_fingerprint=prepared)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sha256:1234 # why", "line 3: '1234' is not a SHA-256"),
        (f"sha256:{'a' * 64}", "has no reason: write sha256:HASH # REASON"),
        (f"sha256:{'a' * 64} #", "has no reason"),
        ("caption:a red car #1", "has no reason"),
        ("caption: # why", "has no caption"),
        ("picture:a.png # why", "has no known kind"),
        ("a red car # why", "has no known kind"),
        ("caption:x # why\ncaption: x # why", "line 4: caption:x is also in line 3"),
    ],
)
def test_a_line_that_is_wrong_is_told(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(WithdrawnError) as error:
        read_list(str(listed(tmp_path / "list", line)))
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(WithdrawnError, match="cannot be read"):
        read_list(str(tmp_path / "none"))
    (tmp_path / "list").write_bytes(b"caption:\xff # why")
    with pytest.raises(WithdrawnError, match="not UTF-8 text"):
        read_list(str(tmp_path / "list"))


def test_captions_are_found_in_the_form_that_datasets_have(tmp_path: Path) -> None:
    path = listed(tmp_path / "list", "caption: “caf\u0065\u0301” &amp; # no. 1 # why")
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    [entry] = read_list(str(path)).entries
    assert (entry.value, entry.reason, entry.line) == ('"caf\u00e9" & # no. 1', "why", 3)
