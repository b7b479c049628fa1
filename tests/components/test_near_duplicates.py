import dataclasses
import io
import logging
import os

import numpy as np
import pytest
from ingested_rows import TWO_WORKERS, file_bytes, generate, read_rejects, read_split, sha256, write
from PIL import Image

from benchmarks.near_duplicates.pictures import SETS, VARIANTS, encoded, near_white, soft, sprites
from components.caption_example_gen import executor
from components.caption_example_gen.groups import judge_groups
from components.caption_example_gen.groups_file import GROUPS_NAME, read_groups
from components.caption_example_gen.rows import (
    KEEP_ONE,
    CheckSettings,
    Sketched,
    Sketches,
    spill,
)
from components.caption_example_gen.sources import DatasetSpec, split_of
from storage import near_duplicates
from storage.images import SKETCH_SIDE, inspect_image

SETTINGS = CheckSettings(
    spec=DatasetSpec("unused"),
    eval_fraction=0.5,
    seed=0,
    max_pixels=1 << 20,
    max_aspect_ratio=10,
    num_shards={"train": 1, "eval": 1},
    spill_folder="unused",
    spill_bytes=1 << 20,
    near_duplicates=KEEP_ONE,
)


def sketched(files):
    facts = [inspect_image(file, with_sketch=True) for file in files]
    sketches = np.stack([np.frombuffer(f.sketch, np.uint8) for f in facts])
    aspects = np.array([f.width / f.height for f in facts])
    return sketches.reshape(-1, SKETCH_SIDE, SKETCH_SIDE, 3), aspects


def grouped(files):
    return [found.tolist() for found in near_duplicates.group(*sketched(files))]


@pytest.fixture(scope="module")
def parts():
    """Parts of a photograph."""
    return SETS["photograph, parts"]()


@pytest.mark.parametrize("name", SETS)
def test_different_pictures_are_not_thrown_together(name):
    few = {"soft shapes": soft(60), "near white": near_white(60, 256)}
    assert grouped(encoded(picture) for picture in few.get(name) or SETS[name]()) == []


@pytest.mark.parametrize(
    "variant",
    [name for name in VARIANTS if not any(n in name for n in ("10 %", "15 %", "quality 10"))],
)
def test_a_photograph_is_found_in_its_variants(parts, variant):
    pictures = parts[13:37:6]
    count = len(pictures)
    found = grouped(
        [*(encoded(picture) for picture in pictures), *(VARIANTS[variant](p) for p in pictures)]
    )
    assert found == [[i, i + count] for i in range(count)]


def test_all_variants_of_a_picture_are_one_group_among_others(parts):
    [picture, *others] = parts[25:35]
    files = [encoded(picture)]
    for name in ("half the size", "mirrored, JPEG, quality 60", "black border, 5 %", "letterbox"):
        files += [encoded(others.pop()), VARIANTS[name](picture)]
    assert grouped(files) == [[0, 2, 4, 6, 8]]


def test_copies_with_other_bytes_are_found_without_a_look_at_pixels():
    picture = Image.new("RGB", (40, 40), "white")
    files = [encoded(picture, "PNG", compress_level=level) for level in (0, 1, 9)]
    assert grouped([files[0], encoded(Image.new("RGB", (40, 40), "red")), *files[1:]]) == [
        [0, 2, 3]
    ]


def test_small_steps_do_not_lead_through_all_pictures():
    """Each differs from the next by one level, which is less than JPEG changes."""
    first = np.asarray(sprites(2)[0])
    files = []
    for step in range(40):
        pixels = first.copy()
        pixels[..., 1] = np.where(first[..., 0] > first[..., 1], 2 * step, first[..., 1])
        files.append(encoded(Image.fromarray(pixels)))
    found = grouped(files)
    assert sorted(i for members in found for i in members) == list(range(40))
    assert len(found) > 5
    # 5 levels of chroma are some 15 of green.
    assert all(members[-1] - members[0] < 12 for members in found)


def test_a_pair_is_judged_alike_whatever_else_there_is():
    pictures = [encoded(picture) for picture in soft(40)]
    smaller = VARIANTS["half the size"](soft(4)[3])
    assert grouped([*pictures, smaller]) == [[3, 40]]
    assert grouped([smaller, pictures[3]]) == [[0, 1]]


def test_all_that_resembles_a_picture_is_found_however_much_it_is(parts):
    first, second, *others = parts[25:40]
    files = [encoded(picture) for picture in others]
    cuts = [first.crop((i, j, first.width - j, first.height - i)) for i in range(4) for j in (0, 2)]
    names = ("half the size", "mirrored", "JPEG, quality 50", "black border, 5 %")
    files += [encoded(first), *map(encoded, cuts[1:]), *(VARIANTS[name](first) for name in names)]
    files += [encoded(second), VARIANTS["mirrored, JPEG, quality 60"](second)]
    one, two = len(others), len(files) - 2
    found = near_duplicates.resembling(*sketched(files), [two, one])
    assert found == {**dict.fromkeys(range(one + 1, two), one), two + 1: two}
    assert len(found) > 10
    assert near_duplicates.resembling(*sketched(files), [0]) == {}
    assert near_duplicates.resembling(*sketched(files), []) == {}


def test_small_steps_do_not_lead_away_from_what_is_looked_for():
    first = np.asarray(sprites(2)[0])
    files = []
    for step in range(40):
        pixels = first.copy()
        pixels[..., 1] = np.where(first[..., 0] > first[..., 1], 2 * step, first[..., 1])
        files.append(encoded(Image.fromarray(pixels)))
    found = near_duplicates.resembling(*sketched(files), [20])
    assert {19, 21} <= set(found)
    assert all(abs(position - 20) < 12 for position in found)
    # Farther than two that are compared directly, by one in between.
    apart = max(abs(position - 20) for position in found)
    assert grouped([files[20], files[20 + apart]]) == []


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_have_no_groups(count):
    sketches = np.zeros((count, SKETCH_SIDE, SKETCH_SIDE, 3), np.uint8)
    assert near_duplicates.group(sketches, np.ones(count)) == []


VERSIONS = ("half the size", "mirrored", "JPEG, quality 50", "black border, 5 %")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, parts):
    """Forty pictures, and four versions of each of the first six."""
    folder = tmp_path_factory.mktemp("near") / "set"
    pictures = parts[:40]
    rows = [(encoded(picture), f"picture {i}") for i, picture in enumerate(pictures)]
    for i, picture in enumerate(pictures[10:16]):
        rows += [(VARIANTS[name](picture), f"{name} {i + 10}") for name in VERSIONS]
    write(folder / "all.parquet", rows)
    return folder, rows


def splits(examples):
    return {
        row["image/id"].decode(): split
        for split in executor.SPLITS
        for row in read_split(examples, split)
    }


def expected_groups(rows):
    """Hashes by group, the smallest first."""
    originals = {f"{i}": [] for i in range(10, 16)}
    for image, caption in rows:
        originals.get(caption.split()[-1], []).append(sha256(image))
    return [sorted(group) for group in originals.values()]


def test_a_group_goes_where_its_smallest_hash_goes(dataset, tmp_path):
    folder, rows = dataset
    examples, _ = generate(tmp_path, folder, TWO_WORKERS)
    found = splits(examples)
    assert len(found) == len(rows)
    first_of = {sha256(image): sha256(image) for image, _ in rows}
    for group in expected_groups(rows):
        assert len(group) == 5
        first_of.update(dict.fromkeys(group, group[0]))
    assert found == {picture: split_of(first, 0.3, 0) for picture, first in first_of.items()}
    # By their own hashes, these would have been parted.
    assert any(
        len({split_of(picture, 0.3, 0) for picture in group}) == 2
        for group in expected_groups(rows)
    )
    assert examples.get_int_custom_property("near_duplicate_groups") == 6
    assert examples.get_int_custom_property("near_duplicate_pictures") == 30
    groups = list(read_groups(os.path.join(examples.uri, GROUPS_NAME)))
    assert sorted([p.picture for p in group] for group in groups) == sorted(expected_groups(rows))
    for picture in (p for group in groups for p in group):
        image = rows[picture.row][0]
        assert sha256(image) == picture.picture
        assert found[picture.picture] == picture.split
        with Image.open(io.BytesIO(image)) as opened:
            assert opened.size == (picture.width, picture.height)
        assert picture.thumbnail


def test_groups_do_not_depend_on_workers_shards_or_spills(dataset, tmp_path, monkeypatch):
    folder, _ = dataset
    plain = splits(generate(tmp_path, folder)[0])
    monkeypatch.setattr(executor, "_SHARD_BYTES", 1 << 20)
    monkeypatch.setattr(executor, "_SPILL_BYTES", 100_000)
    first, _ = generate(tmp_path, folder)
    assert len(os.listdir(os.path.join(first.uri, "Split-train"))) > 1
    assert splits(first) == plain
    second, _ = generate(tmp_path, folder, TWO_WORKERS)
    assert file_bytes(second) == file_bytes(first)
    for split in executor.SPLITS:
        ids = [row["id"] for row in read_split(first, split)]
        assert ids == sorted(ids)


def test_one_of_a_group_is_kept_and_the_others_are_rejects(dataset, tmp_path, caplog):
    folder, rows = dataset
    with caplog.at_level(logging.INFO):
        examples, rejects = generate(
            tmp_path, folder, TWO_WORKERS, near_duplicates="keep_one", max_rejected_fraction=0.0
        )
    assert "one picture of each group is kept, and 24 rows are left out" in caplog.text
    found = splits(examples)
    assert len(found) == 40
    kept = {sha256(image) for image, caption in rows if caption.startswith("black border")}
    for group in expected_groups(rows):
        # It has the most pixels.
        [one] = [picture for picture in group if picture in found]
        assert one in kept
        assert found[one] == split_of(group[0], 0.3, 0)
    left_out = read_rejects(rejects)
    assert [row["reason"] for row in left_out] == ["near_duplicate"] * 24
    assert rejects.get_int_custom_property("rejected_near_duplicate") == 24
    # The first row of them is picture 10, of which the largest is the fourth version.
    assert left_out[0]["row"] == 10
    assert "nearly the same picture as all.parquet row 43" in left_out[0]["detail"]
    groups = list(read_groups(os.path.join(examples.uri, GROUPS_NAME)))
    assert [sum(p.split == "" for p in group) for group in groups] == [4] * 6
    assert all(p.thumbnail for group in groups for p in group)


def test_ignored_they_are_split_by_their_own_hashes(dataset, tmp_path):
    folder, rows = dataset
    examples, _ = generate(tmp_path, folder, near_duplicates="ignore")
    assert splits(examples) == {sha256(image): split_of(sha256(image), 0.3, 0) for image, _ in rows}
    assert not os.path.exists(os.path.join(examples.uri, GROUPS_NAME))
    assert not examples.has_custom_property("near_duplicate_groups")


def test_without_near_duplicates_nothing_changes(tmp_path):
    write(
        tmp_path / "set" / "all.parquet",
        [(encoded(picture), f"picture {i}") for i, picture in enumerate(soft(30))],
    )
    looked, _ = generate(tmp_path, tmp_path / "set")
    ignored, _ = generate(tmp_path, tmp_path / "set", near_duplicates="ignore")
    found = file_bytes(looked)
    assert found.pop(GROUPS_NAME) == b""
    assert found == file_bytes(ignored)


def test_an_empty_split_gets_a_whole_group(tmp_path, parts):
    pictures = parts[13:21:4]
    rows = [
        (file, f"{i} {n}")
        for i, picture in enumerate(pictures)
        for n, file in enumerate([encoded(picture), VARIANTS["mirrored"](picture)])
    ]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, _ = generate(tmp_path, tmp_path / "set", TWO_WORKERS, eval_fraction=1e-9)
    found = splits(examples)
    of_rows = [found[sha256(image)] for image, _ in rows]
    assert of_rows in (["eval"] * 2 + ["train"] * 2, ["train"] * 2 + ["eval"] * 2)
    for group in read_groups(os.path.join(examples.uri, GROUPS_NAME)):
        assert [p.split for p in group] == [found[p.picture] for p in group]


def test_versions_of_one_picture_alone_are_parted_with_a_warning(tmp_path, parts, caplog):
    rows = [(VARIANTS[name](parts[25]), name) for name in VERSIONS]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, _ = generate(tmp_path, tmp_path / "set", eval_fraction=0.01)
    assert sorted(splits(examples).values()) == ["eval", "train", "train", "train"]
    assert "All 4 pictures are near duplicates of one another" in caplog.text


def test_blocks_of_pictures_find_what_a_look_at_all_pairs_finds(monkeypatch):
    rng = np.random.default_rng(0)
    descriptors = rng.normal(0, 0.25, (300, 9)).astype(np.float32)
    odd = np.arange(9) % 3 == 1
    # Near ones as they are, and as mirror images.
    for i in range(0, 60, 2):
        turned = np.where(odd, -1, 1) if i % 4 else 1
        descriptors[i + 1] = descriptors[i] * turned + rng.normal(0, 0.02, 9)
    # Two views of one picture are no pair.
    owner = np.arange(300)
    owner[1] = 0
    signs = np.where(odd, -1, 1)
    expected = set()
    for i in range(300):
        plain = np.linalg.norm(descriptors - descriptors[i], axis=1)
        mirrored = np.linalg.norm(descriptors * signs - descriptors[i], axis=1)
        for j in np.flatnonzero(np.minimum(plain, mirrored) < 0.55):
            if i < j and owner[i] != owner[j]:
                expected.add((i, int(j), bool(mirrored[j] < plain[j])))
    assert len(expected) > 30
    monkeypatch.setattr(near_duplicates, "_NEIGHBOURS", 300)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 16)
    tiles = near_duplicates._Tiles.of(descriptors, odd, owner)
    assert len(tiles.apart) > 16
    found = [tuple(map(int, pair)) for pairs in tiles.pairs() for pair in pairs]
    assert len(found) == len(expected)
    assert {(*sorted(pair[:2]), bool(pair[2])) for pair in found} == expected


def test_of_many_alike_the_nearest_are_looked_at():
    places = np.concatenate([np.zeros(1), 0.001 * 2.0 ** np.arange(8), np.full(200, 0.4)])
    descriptors = np.stack([places, np.zeros(len(places))], 1).astype(np.float32)
    odd = np.array([False, True])
    tiles = near_duplicates._Tiles.of(descriptors, odd, np.arange(len(places)))
    pairs = np.concatenate(list(tiles.pairs()))
    assert sorted(pairs[pairs[:, 0] == 0, 1]) == list(range(1, 9))
    assert np.bincount(pairs[:, 0]).max() == 8


def test_a_picture_that_two_workers_have_is_one(tmp_path):
    """Whichever comes first, the first row of it is told, and all files that it is in are known."""
    pictures = sprites(2)
    variant = VARIANTS["half the size"](pictures[0])
    files = [encoded(pictures[0]), variant, encoded(pictures[1])]
    settings = dataclasses.replace(SETTINGS, spill_folder=str(tmp_path), eval_fraction=0.0)

    def stretch(*rows):
        found = []
        for file, name, row in rows:
            facts = inspect_image(file, with_sketch=True)
            found.append(Sketched(sha256(file), name, row, facts.width, facts.height, facts.sketch))
        return spill({"sketches": Sketches.of(found)}, str(tmp_path))["sketches"]

    one = stretch((files[1], "b", 0), (files[2], "b", 1))
    other = stretch((files[0], "a", 7), (files[1], "a", 3))
    third = stretch((files[2], "c", 0))
    for order in ((one, other, third), (third, other, one)):
        [members], verdicts = judge_groups(order, settings)
        assert {(p.picture, p.file, p.row) for p in members} == {
            (sha256(files[0]), "a", 7),
            (sha256(files[1]), "a", 3),
        }
        [(dropped, reason)] = verdicts.dropped.items()
        assert dropped == sha256(files[1])
        assert "a row 7, which has 64 x 64 pixels" in reason
        assert verdicts.paths == {one.path, other.path}
    assert judge_groups([], settings)[0] == []
