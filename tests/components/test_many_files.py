"""Datasets of more files than names are held of: nothing else may come out."""

import pickle
import tracemalloc

import fsspec
import pytest
from made_datasets import png, put

from components.caption_example_gen.rows import CheckSettings, RowChecker, Stretch, spill_units
from components.caption_example_gen.sources import (
    DatasetSpec,
    dataset_fingerprint,
    files,
    form,
    listing,
    open_dataset,
    picture_files,
)
from components.caption_example_gen.sources.listing import Listed, Listing, Paths

# In the order of their characters, which is neither that of folders nor that of UTF-16.
ORDERED = ["a", "a-b/1", "a/1", "a/2", "a0", "x\udcff", "x\ue000", "x\U0001f600", "é"]
SET = {
    **{f"a-b/{i}.png": png(i) for i in range(3)},
    **{f"a-b/{i}.txt": f"text {i}" for i in range(3)},
    "a/TWO.JPG": png(10), "a/two.txt": "another case", "a/3.png": png(11), "a/3.png.txt": "whole",
    "b/4.png": png(12), "b/4.txt": "one", "b/4.png.txt": "two", "b/gone.txt": "no picture",
    "b/readme.txt": "a note", "b/5.png": png(13), "c/masks/1.png": png(14), "test/6.png": png(15),
    "train/7.png": png(16), "train/7.txt": "trained on", "train/masks/7.png": png(17),
}  # fmt: skip


@pytest.fixture(params=[1 << 15, 2], ids=["held", "in a file"])
def held(request, monkeypatch):
    for module in (listing, form, picture_files):
        monkeypatch.setattr(module, "HELD", request.param)


def test_a_listing_is_a_mapping_in_order(held, monkeypatch):
    monkeypatch.setattr(listing, "_PAGE_ROWS", 2)
    found = Listing(Listed(path, i, f"etag:{i}") for i, path in enumerate(ORDERED[::-1]))
    assert list(found) == ORDERED == sorted(ORDERED)
    assert list(found.items()) == list(zip(ORDERED, range(8, -1, -1), strict=True))
    assert (len(found), found["a/1"], found.checksum("a/1")) == (9, 6, "etag:6")
    assert ("a/2" in found, "a/3" in found, None in found, found.get("a/3", -1)) == (
        True, False, False, -1,
    )  # fmt: skip
    assert found.checksum("a/3") == ""
    with pytest.raises(KeyError, match="a/3"):
        found["a/3"]
    assert (list(Listing([])), len(Listing([]))) == ([], 0)


def test_paths_are_a_sequence():
    paths = Paths(tuple("abcdef"), "ace".__contains__)
    assert (list(paths), len(paths), paths[0], paths[-1]) == (["a", "c", "e"], 3, "a", "e")
    assert (paths[:1], paths[1:], bool(paths), "b" in paths) == (("a",), ("c", "e"), True, False)
    with pytest.raises(IndexError):
        paths[3]
    assert not Paths(("b",), "ace".__contains__)


def said(dataset, **settings):
    spec = DatasetSpec(dataset, **settings)
    source = open_dataset(spec)
    rows = [row for unit in source.units() for row in source.read(unit)]
    read, left_out = list(source.paths), list(source.left_out)
    return source, rows, [source.taken_for, read, left_out, source.image_bytes], spec


@pytest.mark.parametrize("place", ["here", "remote"])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_many_names_and_few_are_the_same_dataset(tmp_path, monkeypatch, place, split):
    if place == "here":
        put(tmp_path, SET)
        dataset = str(tmp_path)
    else:
        dataset = "memory://many"
        memory = fsspec.filesystem("memory")
        for path, content in SET.items():
            memory.pipe_file(f"/many/{path}", content.encode() if type(content) is str else content)
    source, rows, facts, spec = said(dataset, split=split)
    fingerprint = dataset_fingerprint(spec, source)
    for module in (listing, form, picture_files):
        monkeypatch.setattr(module, "HELD", 2)
    again, rows_again, facts_again, _ = said(dataset, split=split)
    assert (rows_again, facts_again) == (rows, facts)
    assert dataset_fingerprint(spec, again) == fingerprint
    if split == "all":
        assert [row.path for row in rows][:3] == ["a-b/0.png", "a-b/1.png", "a-b/2.png"]
        assert "b/readme.txt" not in facts[1]
        assert {"b/gone.txt", "a/two.txt"} <= {*facts[1]}
    if place == "remote":
        memory.rm("/", recursive=True)


def test_units_are_read_elsewhere_without_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "_UNIT_ROWS", 2)
    put(tmp_path / "set", SET)
    (tmp_path / "spill").mkdir()
    source, rows, _, spec = said(str(tmp_path / "set"), split="all", caption="given")
    units = list(source.units())
    reader = source.elsewhere()
    spilled = list(spill_units(iter(units), str(tmp_path / "spill")))
    assert len({stretch.path for stretch in spilled}) == 1
    # What is passed around does not grow with names.
    assert all(isinstance(stretch, Stretch) for stretch in spilled)
    assert [stretch.read_unit() for stretch in spilled] == units

    def no_list(self):
        raise AssertionError("the dataset is listed")

    monkeypatch.setattr(files.FsspecFiles, "_list", no_list)
    packed = pickle.loads(pickle.dumps(reader))
    assert [row for unit in units for row in packed.read(unit)] == rows
    checker = RowChecker(
        CheckSettings(
            spec=spec, eval_fraction=0.3, seed=0, max_pixels=1 << 20, max_aspect_ratio=10.0,
            num_shards={"train": 1, "eval": 1}, spill_folder=str(tmp_path / "spill"),
            spill_bytes=1 << 20, reader=packed,
        )
    )  # fmt: skip
    batches = [batch for stretch in spilled for batch in checker.check(stretch)]
    found = [
        each for batch in batches for stretch in batch.spilled.values() for each in stretch.read()
    ]
    assert len(found) + sum(len(batch.rejects) for batch in batches) == len(rows)
    assert {"given", "another case", "whole", "text 0"} <= {each.caption for each in found}


def test_units_without_names_stay(tmp_path):
    put(tmp_path / "set", {"1.png": png(1), "x.csv": "image,text\n1.png,one\n"})
    units = list(open_dataset(DatasetSpec(str(tmp_path / "set"))).units())
    assert list(spill_units(iter(units), str(tmp_path / "nowhere"))) == units


class Made(files.FsspecFiles):
    """A folder that has pairs of picture and caption of which there are only the names."""

    def __init__(self, folder, count):
        super().__init__(str(folder))
        self.count = count

    def _list(self):
        for i in range(self.count):
            yield Listed(f"a folder/picture_{i:06}.png", 100)
            yield Listed(f"a folder/picture_{i:06}.txt", 10)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch):
    from components.caption_example_gen import sources

    for module in (listing, form, picture_files):
        monkeypatch.setattr(module, "HELD", 64)
    monkeypatch.setattr(listing, "_PAGE_ROWS", 64)
    monkeypatch.setattr(sources, "_check_fetched", lambda *_: None)
    monkeypatch.setattr("components.caption_example_gen.sources.forms.caption_files.are_numbers",
                        lambda *_: False)  # fmt: skip

    def peak(count):
        monkeypatch.setattr(sources, "_files", lambda _: Made(tmp_path, count))
        tracemalloc.start()
        source = open_dataset(DatasetSpec(str(tmp_path)))
        units = spill_units(source.units(), str(tmp_path))
        assert sum(1 for _ in units) == -(-count // 256)
        assert len(source.paths) == 2 * count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    # 0.3 kB a name would be 0.6 MB more.
    assert peak(1200) - peak(200) < 60_000
