"""An output folder with datasets of a few pictures, and the releases that were made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from drawings import COPIES, drawing, saved
from made_store import FIRST_DAY, MINUTE, Made, Settings, StoreMaker

from components.caption_example_gen.rows import example_of
from components.tfrecords import write_shard

CAT, DOG, OWL, FOX = (saved(drawing(seed)) for seed in range(4))
SMALL_CAT, MIRRORED_CAT = (COPIES[name](drawing(0)) for name in ("half the size", "mirrored"))


def digest(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


def write_dataset(folder: Path, splits: Mapping[str, Mapping[str, bytes]]) -> None:
    """What CaptionExampleGen leaves of captioned pictures."""
    (folder / "rows").mkdir(parents=True)
    for split, captioned in splits.items():
        made = [example_of(picture, caption) for caption, picture in captioned.items()]
        lines = b"".join(each.indexed.line() for each in made)
        (folder / "rows" / f"{split}-00000.jsonl").write_bytes(lines)
        path = folder / f"Split-{split}" / "examples-00000-of-00001.gz"
        path.parent.mkdir()
        write_shard(str(path), [each.example for each in made], str(folder))


def folder_of(maker: StoreMaker, made: Made) -> Path:
    return Path(maker.artifacts[made.place][1].uri)


def record_releases(folder: Path) -> Path:
    """Four releases; the second one started from the first, and the last one is served."""
    maker = StoreMaker(folder=str(folder))
    datasets: dict[str, dict[str, dict[str, bytes]]] = {
        "one": {"train": {"a cat": CAT, "a dog": DOG, "small": SMALL_CAT}, "eval": {"owl": OWL}},
        "two": {"train": {"a dog": DOG, "a fox": FOX}, "eval": {"an owl": OWL}},
        "three": {"train": {"a fox": FOX}, "eval": {"mirrored": MIRRORED_CAT}},
        "four": {"train": {"a fox": FOX}, "eval": {"an owl": OWL}},
    }
    before: list[Made] = []
    for number, (run, splits) in enumerate(datasets.items()):
        started = before if run == "two" else []
        settings = Settings(fingerprint=run)
        made = maker.run(run, settings, FIRST_DAY + number * 10 * MINUTE, started=started)
        before = made["model"]
        write_dataset(folder_of(maker, made["examples"][0]), splits)
    maker.save(folder / "metadata.sqlite")
    (folder / "serving_model").mkdir()
    config = "".join(f"versions: {version}\n" for version in (3, 4) for _ in range(3))
    (folder / "serving_model" / "models.config").write_text(config)
    return folder
