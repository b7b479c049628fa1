"""Publishes a release: `python -m serving.publish hf://ORG/NAME`, or to a bucket or folder.

Publishes the SavedModels as they were pushed, the release's files for other tools, `release.json`
with their hashes and lineage, the signature `model.sig` if the release is signed, and a model card
with pictures that the release draws. On the hub this is one commit, tagged `release-<version>`;
elsewhere a folder of that name. `serving.pull` brings it back. The hub's token comes from
`HF_TOKEN` or `hf auth login`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from serving import marking, seals
from serving.client import Generator
from serving.errors import ServingError, check_place
from serving.releases import (
    CHECKPOINT_NAME,
    DEFAULT_SERVING_DIR,
    IMAGE_ENCODER,
    RELEASES,
    SINGLE_FILES,
    Release,
    find_release,
    networks_of,
)
from serving.request import SAMPLERS
from serving.serving_directory import ServingDirectory
from storage import filesystem
from storage.commands import module_command, place
from storage.errors import one_line
from storage.flags import Command, report
from storage.model_manifest import ModelManifest
from storage.picture_marks import Marks
from storage.verdict import UNSURE, VERDICT

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RELEASE_NAME = "release.json"
CARD_NAME = "README.md"
HUB = "hf://"
HUB_DATASETS = f"{HUB}datasets/"

_PICTURES = 4
_FROM_PICTURE = (
    'python -m serving.generate "a drawing" --image drawing.png --strength 0.5 '
    "--serving-dir serving_model --out other.png"
)
_VERIFY = (
    "It is signed, by OpenSSF's model signing: `model_signing verify key FOLDER --signature "
    f"FOLDER/{seals.PUBLISHED_NAME} --public_key KEY --ignore_unsigned_files`."
)
# KerasCV's files there hold the weights of this model, from which others of the family descend.
_CONVERTED_FROM = {
    "fchollet/stable-diffusion": "CompVis/stable-diffusion-v1-4",
    "ianstenbit/keras-sd2.1": "stabilityai/stable-diffusion-2-1-base",
}
_FOR_OTHERS = {
    CHECKPOINT_NAME: "the whole model in the original layout of Stable Diffusion, for A1111 and "
    "ComfyUI",
    "lora.safetensors": "its adapters (LoRA), for A1111, ComfyUI and diffusers' "
    "`load_lora_weights`",
    "learned_embeds.safetensors": "the vectors of its new word, for A1111, ComfyUI and diffusers' "
    "`load_textual_inversion`",
}
_METRICS = {
    "loss": "Held-out loss",
    "loss_baseline": "Held-out loss of the model that it was compared with",
    "loss_delta": "Difference",
}


class Picture(NamedTuple):
    """A picture of the model card."""

    prompt: str
    seed: int
    contents: bytes

    def name(self, index: int) -> str:
        """Its path in the published release."""
        return f"pictures/{index:02d}.png"


def publish(
    serving_dir: str,
    target: str,
    version: int | None = None,
    *,
    prompts: Sequence[str] | None = None,
    license_: str | None = None,
    private: bool = False,
) -> str:
    """Publishes a release of a serving directory.

    Args:
        serving_dir: The serving directory.
        target: `hf://ORG/NAME`, a local folder, or an address that fsspec can open, such as gs://.
        version: Which release; the current one if None.
        prompts: What to draw for the model card; the first validation prompts if None.
        license_: The hub's name for the licence of the weights.
        private: Whether the model on the hub is private, if this makes it.

    Returns:
        The address that `serving.pull` takes.

    Raises:
        ServingError: The release is damaged, the target refuses it or has it already, or the
            target's address has a secret in it.
    """
    check_place(target)
    release = find_release(serving_dir, version)
    if damaged := ServingDirectory(serving_dir).damaged_files(release.version):
        raise ServingError(
            f"release {release.version} is damaged: {seals.in_words(damaged)}; publish another "
            "version"
        )
    if prompts is None:
        manifest = ModelManifest.of_release(release.facts)
        prompts = manifest.validation.get("prompts", [])[:_PICTURES] if manifest else []
    signer = marking.signer_of(release.facts) if prompts else None
    pictures = list(_draw(release, prompts, marking.Marking(signer=signer))) if prompts else []
    signature = _signature(serving_dir, release.version)
    card = model_card(
        release.facts,
        pictures,
        license_,
        name=target.rstrip("/").rpartition("/")[2],
        signed=bool(signature),
    )
    small = {
        RELEASE_NAME: filesystem.read_bytes(
            filesystem.join(serving_dir, RELEASES, f"{release.version}.json")
        ),
        CARD_NAME: card.encode(),
        **signature,
        **{picture.name(index): picture.contents for index, picture in enumerate(pictures)},
    }
    # From the path in the serving directory to the path in the published release.
    files = {path: seals.published_path(path) for path in release.facts["files"]}
    name = seals.release_name(release.version)
    if target.startswith(HUB):
        return _to_hub(serving_dir, target, name, files, small, private)
    return _to_folder(serving_dir, target, name, files, small)


def model_card(
    facts: Mapping[str, Any],
    pictures: Sequence[Picture],
    license_: str | None = None,
    *,
    name: str,
    signed: bool = False,
) -> str:
    """The hub's README of a release: front matter, pictures, metrics, lineage, how to use it.

    Args:
        facts: The facts of the release.
        pictures: Pictures that the release has drawn.
        license_: The hub's name for the licence of the weights.
        name: Name of the model where it is published.
        signed: Whether the release is signed.
    """
    version = facts["version"]
    lines = ["---", _front_matter(facts, license_, name), "---", "", f"# Release {version}", ""]
    # Older models name no sampler, and offer no choice.
    sampler = f"sampler ({', '.join(SAMPLERS)}), " if "sampler" in facts.get("defaults", {}) else ""
    manifest = ModelManifest.of_release(facts)
    multiple = manifest.size_multiple if manifest else None
    size = f"height and width (multiples of {multiple}), " if multiple else ""
    from_pictures = IMAGE_ENCODER in networks_of(facts)
    models, encoder = ("four", ", image encoder") if from_pictures else ("three", "")
    pictures_too = (
        " They can also draw from a picture (with the strength as an input), and redraw the parts "
        "of it that a mask names."
        if from_pictures
        else ""
    )
    lines += [
        f"Stable Diffusion, fine-tuned on TFX: {models} SavedModels (text encoder, diffusion "
        f"model, decoder{encoder}) that TensorFlow Serving loads as they are. Prompts go in as "
        f"text; number of steps, guidance scale, {sampler}{size}seed and negative prompt are "
        f"inputs.{pictures_too}",
        "",
    ]
    if facts.get(VERDICT) == UNSURE:
        reasons = "; ".join(facts.get("reasons", []))
        lines += [f"**Unsure:** {_cell(reasons)}.", ""]
    if pictures:
        lines += [
            f"![{_cell(picture.prompt)}]({picture.name(index)})"
            for index, picture in enumerate(pictures)
        ]
        lines += ["", "| picture | prompt | seed |", "| --- | --- | --- |"]
        lines += [
            f"| {index} | {_cell(picture.prompt)} | {picture.seed} |"
            for index, picture in enumerate(pictures)
        ]
        defaults = facts.get("defaults", {})
        numbers = ", ".join(f"{name} {value}" for name, value in sorted(defaults.items()))
        lines += ["", f"Drawn by this release{f' with {numbers}' if numbers else ''}.", ""]
    metrics = {name: value for name, value in facts.get("metrics", {}).items() if name in _METRICS}
    if metrics:
        lines += ["## Metrics", "", "| metric | value |", "| --- | --- |"]
        lines += [f"| {_METRICS[name]} | {value:.4f} |" for name, value in metrics.items()]
        lines += [
            "",
            "Mean squared error of the predicted noise on held-out pictures.",
            "",
        ]
    lines += ["## Lineage", "", "| what | |", "| --- | --- |"]
    lines += [f"| {what} | {_cell(value)} |" for what, value in _lineage(facts)]
    lines += [
        "",
        "## Use",
        "",
        "```sh",
        "python -m serving.pull hf://ORG/NAME --serving-dir serving_model   # this repository",
        'python -m serving.generate "a drawing" --serving-dir serving_model --out drawing.png',
        *([_FROM_PICTURE] if from_pictures else []),
        "```",
        "",
        f"`{RELEASE_NAME}` lists the SHA-256 of every file; pulling verifies them.",
        *([_VERIFY] if signed else []),
        "",
    ]
    if single := facts.get(SINGLE_FILES):
        lines += ["## Other tools", ""]
        lines += [
            f"* `{SINGLE_FILES}/{name}` ({stored_as}): {_FOR_OTHERS.get(name, 'a file')}"
            for name, stored_as in single.items()
        ]
        lines += [""]
    return "\n".join(lines)


def _signature(serving_dir: str, version: int) -> dict[str, bytes]:
    _, published = seals.signature_names(version)
    bundle = seals.read_signatures(serving_dir, version).get(published)
    return {} if bundle is None else {seals.PUBLISHED_NAME: bundle}


def _front_matter(facts: Mapping[str, Any], license_: str | None, name: str) -> str:
    """YAML by which the hub links the model to its base and dataset, and shows its loss."""
    # Slow to import.
    from huggingface_hub import ModelCardData

    base_model, dataset = _base_model(facts), _hub_dataset(facts)
    image_to_image = ["image-to-image"] if IMAGE_ENCODER in networks_of(facts) else []
    results = list(_results(facts))
    data = ModelCardData(
        library_name="tensorflow",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "tensorflow", "tfx", *image_to_image],
        license=license_,
        base_model=base_model,
        datasets=None if dataset is None else [dataset[0]],
        eval_results=results or None,
        model_name=name if results else None,
    )
    if base_model is not None:
        data["base_model_relation"] = "finetune"
    return data.to_yaml()


def _base_model(facts: Mapping[str, Any]) -> str | None:
    """The hub model that the release was fine-tuned from; `None` if it was not on the hub."""
    from storage import hub

    manifest = ModelManifest.of_release(facts)
    source = manifest.base_weights_source if manifest else None
    if source is None or not source.startswith(HUB):
        return None
    repo_id = hub.parse_address(source).repo_id
    return _CONVERTED_FROM.get(repo_id, repo_id)


def _hub_dataset(facts: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Id and commit of the hub dataset that the release was trained on; `None` for any other."""
    address: str = facts.get("dataset") or ""
    if not address.startswith(HUB_DATASETS):
        return None
    repo_id, _, commit = address.removeprefix(HUB_DATASETS).partition("@")
    return repo_id, commit or None


def _results(facts: Mapping[str, Any]) -> Iterator[EvalResult]:
    """The held-out loss, and the dataset that it was measured on."""
    from huggingface_hub import EvalResult

    address, loss = facts.get("dataset"), facts.get("metrics", {}).get("loss")
    if address is None or loss is None:
        return
    manifest = ModelManifest.of_release(facts)
    held_out = manifest.latents.get("counts", {}).get("eval") if manifest else None
    repo_id, commit = _hub_dataset(facts) or ("", None)
    yield EvalResult(
        task_type="text-to-image",
        # Of a dataset that is not on the hub, only the name is public.
        dataset_type=repo_id or "private",
        dataset_name=(repo_id or address).rstrip("/").rpartition("/")[2],
        dataset_split="held out",
        dataset_revision=commit,
        dataset_args=None if held_out is None else {"pictures": held_out},
        metric_type="mse",
        metric_value=round(loss, 6),
        metric_name="Held-out loss (mean squared error of the predicted noise)",
    )


def _lineage(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    lineage, manifest = facts.get("lineage", {}), ModelManifest.of_release(facts)
    found = {
        "Preset": facts.get("preset"),
        "Size of the pictures": facts.get("image_size"),
        "Pushed at": facts.get("pushed_at"),
        "Dataset": facts.get("dataset"),
        "Pipeline": lineage.get("pipeline"),
        "Pipeline run": lineage.get("pipeline_run"),
        "Execution of the pusher": lineage.get("execution_id"),
        "Model artifact": facts.get("model", {}).get("id"),
        "Blessing artifact": facts.get("blessing", {}).get("id"),
    }
    if manifest:
        training, hashes = manifest.training.get, manifest.base_weights.get
        found |= {
            "Base weights": manifest.base_weights_source,
            "SHA-256 of the diffusion model's base weights": hashes("diffusion_model"),
            "Started from the model of training": manifest.started_from.get("training_id"),
            "Training steps": training("steps"),
            "Batch size": training("batch_size"),
            "Learning rate": training("learning_rate"),
            "Seed": training("seed"),
            "Weights": manifest.export_weights,
            "Computes in": manifest.compute,
            "Git commit": manifest.git_commit,
            "TensorFlow": manifest.versions.get("tensorflow"),
        }
    yield from ((what, value) for what, value in found.items() if value is not None)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


def _draw(release: Release, prompts: Sequence[str], marked: marking.Marking) -> Iterator[Picture]:
    generator = Generator(release.serving_dir, release.version)
    for seed, prompt in enumerate(prompts):
        marks: list[Marks] = []
        [pixels] = generator.generate([prompt], seed=seed, on_marks=marks.append)
        yield Picture(prompt, seed, marked.encode(pixels, marks))


def _to_hub(
    serving_dir: str,
    target: str,
    name: str,
    files: Mapping[str, str],
    small: Mapping[str, bytes],
    private: bool,
) -> str:
    """Makes one commit that holds only the release, and a tag."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from storage import hub

    if filesystem.is_remote(serving_dir):
        raise ServingError(
            f"{serving_dir} is not on this machine, and the hub takes only local files: pull the "
            "release first"
        )
    try:
        address = hub.parse_address(target)
    except hub.HubError as error:
        raise ServingError(str(error)) from error
    if address.revision is not None or address.folder:
        raise ServingError(f"{target} names a revision or a folder; give only hf://ORG/NAME")
    repo_id, api = address.repo_id, HfApi()
    try:
        with hub.HubRepo(hub.MODEL, repo_id, "main").errors_explained():
            api.create_repo(repo_id, private=private, exist_ok=True)
            tags = [tag.name for tag in api.list_repo_refs(repo_id).tags]
            if name in tags:
                raise ServingError(
                    f"{target} already has a {name}, and releases are never overwritten: pull "
                    f"{target}@{name}, or publish to another model"
                )
            additions = [
                CommitOperationAdd(path, os.path.join(serving_dir, local))
                for local, path in files.items()
            ] + [CommitOperationAdd(path, contents) for path, contents in small.items()]
            added = {operation.path_in_repo for operation in additions} | {".gitattributes"}
            before = [path for path in api.list_repo_files(repo_id) if path not in added]
            deletions = [CommitOperationDelete(path, is_folder=False) for path in before]
            commit = api.create_commit(
                repo_id, [*deletions, *additions], commit_message=f"Release {name[8:]}"
            )
            api.create_tag(repo_id, tag=name, revision=commit.oid)
    except hub.HubError as error:
        raise ServingError(str(error)) from error
    return f"{target}@{name}"


def _to_folder(
    serving_dir: str,
    target: str,
    name: str,
    files: Mapping[str, str],
    small: Mapping[str, bytes],
) -> str:
    """Writes `release.json` last: a folder without it cannot be pulled."""
    from storage.file_systems import open_address

    try:
        target_files, root = open_address(target)
        folder = f"{root.rstrip('/')}/{name}"
        if target_files.exists(f"{folder}/{RELEASE_NAME}"):
            raise ServingError(
                f"{target} already has a {name}, and releases are never overwritten: choose "
                "another place"
            )
        contents = {path: filesystem.join(serving_dir, local) for local, path in files.items()}
        for path in contents:
            target_files.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
            with target_files.open(f"{folder}/{path}", "wb") as f:
                for chunk in filesystem.read_chunks(contents[path]):
                    f.write(chunk)
        for path in sorted(small, key=RELEASE_NAME.__eq__):
            target_files.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
            target_files.pipe_file(f"{folder}/{path}", small[path])
    except ServingError:
        raise
    # The libraries below fsspec raise exceptions of their own.
    except Exception as error:
        detail = one_line(error)[:300]
        raise ServingError(
            f"{target} cannot be written ({type(error).__name__}: {detail}): check the address and "
            "your permission to write there"
        ) from error
    return f"{target.rstrip('/')}/{name}"


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.publish",
        "Publishes a release to the Hugging Face hub, a bucket or a folder.",
        [
            (("hf://you/dragons",), "the current release, with a model card and pictures"),
            (("gs://bucket/models", "--version", "3"), "another one, into a bucket"),
        ],
        takes_version=True,
    )
    parser.add_argument("target", help="hf://ORG/NAME, gs://BUCKET/FOLDER or a folder")
    parser.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the folder that the pipeline pushes to (default: %(default)s)",
    )
    parser.add_argument("--version", type=int, help="the release (default: the current one)")
    parser.add_argument(
        "--prompt",
        action="append",
        dest="prompts",
        metavar="PROMPT",
        help="what to draw for the model card (repeatable; default: the first "
        f"{_PICTURES} validation prompts)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw no pictures")
    parser.add_argument(
        "--license", metavar="NAME", help="the licence of the weights, by the hub's name for it"
    )
    parser.add_argument(
        "--private", action="store_true", help="make the model on the hub private, if it is new"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake."""
    arguments = command().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        address = publish(
            arguments.serving_dir,
            arguments.target,
            arguments.version,
            prompts=[] if arguments.no_pictures else arguments.prompts,
            license_=arguments.license,
            private=arguments.private,
        )
    except (ServingError, OSError, json.JSONDecodeError) as error:
        return report(error)
    print(f"published; to get it back: {module_command('serving.pull', place(address))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
