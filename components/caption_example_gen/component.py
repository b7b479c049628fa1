"""The CaptionExampleGen component."""

from __future__ import annotations

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components.artifacts import RejectedRows
from components.caption_example_gen import executor
from components.caption_example_gen.captions import CaptionTemplate
from components.caption_example_gen.rows import KEEP_TOGETHER, NEAR_DUPLICATES
from components.caption_example_gen.sources.base import (
    CAPTIONS_FROM,
    LINES_EACH,
    LINES_JOINED,
)
from components.caption_example_gen.word_captions import WordCaptions
from components.code_version import code_version
from storage.addresses import check_address
from storage.images import MAX_PIXELS


class CaptionExampleGenSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of CaptionExampleGen."""

    PARAMETERS = {
        "dataset": component_spec.ExecutionParameter(type=str),
        "dataset_fingerprint": component_spec.ExecutionParameter(type=str),
        "dataset_config": component_spec.ExecutionParameter(type=str),
        "dataset_split": component_spec.ExecutionParameter(type=str),
        "eval_fraction": component_spec.ExecutionParameter(type=float),
        "seed": component_spec.ExecutionParameter(type=int),
        "image_column": component_spec.ExecutionParameter(type=str),
        "caption_column": component_spec.ExecutionParameter(type=str),
        "max_pixels": component_spec.ExecutionParameter(type=int),
        "max_aspect_ratio": component_spec.ExecutionParameter(type=float),
        "max_rejected_fraction": component_spec.ExecutionParameter(type=float),
        "dataset_form": component_spec.ExecutionParameter(type=str),
        "caption": component_spec.ExecutionParameter(type=str),
        "captions_from": component_spec.ExecutionParameter(type=str),
        "caption_lines": component_spec.ExecutionParameter(type=str),
        "near_duplicates": component_spec.ExecutionParameter(type=str),
        "caption_template": component_spec.ExecutionParameter(type=str),
        # A `WordCaptions` as JSON; without it, the model learns no new word.
        "word_captions": component_spec.ExecutionParameter(type=str, optional=True),
        # Without it, nothing is withdrawn.
        "withdrawn": component_spec.ExecutionParameter(type=str, optional=True),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: dict[str, component_spec.ChannelParameter] = {}
    OUTPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "rejects": component_spec.ChannelParameter(type=RejectedRows),
    }


class CaptionExampleGen(base_beam_component.BaseBeamComponent):
    """Reads captioned pictures, checks every row and splits the pictures into train and eval.

    Outputs:
      examples: `standard_artifacts.Examples`, splits train and eval, gzip TFRecord of tf.Example
        with `id` (hash of picture and caption), `image/id` (hash of the picture), `image/encoded`
        (the source's own bytes), `image/format`, `image/height`, `image/width`,
        `image/aspect_ratio` (width / height), `image/brightness` (mean luma, 0 to 1), `caption`,
        `repeats` (how often an epoch sees it; only if the dataset says so),
        `caption/num_tokens` (uncut) and `caption/words` (lower case). Custom properties:
        `dataset`, `dataset_fingerprint`, `dataset_revision` (the hub's commit), `dataset_kind`,
        `dataset_taken_for` (what its files were taken for, and why),
        `image_column`, `caption_column`, `num_train`, `num_eval`, `captions_truncated`,
        `captions_left_right`, `images_animated`, `rejected_total`; `captions_replaced`, if the
        model learns a new word that some captions lacked; unless near duplicates are ignored,
        `near_duplicate_groups` and `near_duplicate_pictures`; and `caption_template`, if there
        is one. Beside the splits are `rows`, with ids and captions only (`storage.row_index`), and
        `near_duplicates.json` (`groups_file.read_groups`). If rows are withdrawn,
        `withdrawn_digest` names the list and `withdrawn_rows` is their number.
      rejects: `components.RejectedRows`, the rows that cannot be used and why; if there is a
        list of withdrawn rows, also `withdrawn.json`, a `storage.withdrawn.Withdrawn`.

    A picture with several captions gives one example for each caption.

    The split of a picture depends only on its bytes and the seed, so it does not change when rows
    are added, and the same picture with another caption is in the same split. Near duplicates go to
    the split of the one with the smallest hash, so a new one may move its group, but no other
    picture. Only if a split would be empty does it get a picture of the other one. The files are
    the same byte for byte, whatever the number of workers.
    """

    SPEC_CLASS = CaptionExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        dataset: str,
        dataset_fingerprint: str,
        dataset_config: str = "",
        dataset_split: str = "train",
        eval_fraction: float = 0.1,
        seed: int = 0,
        image_column: str = "",
        caption_column: str = "",
        max_pixels: int = MAX_PIXELS,
        max_aspect_ratio: float = 10.0,
        max_rejected_fraction: float = 0.05,
        dataset_form: str = "",
        caption: str = "",
        captions_from: str = "",
        caption_lines: str = LINES_JOINED,
        near_duplicates: str = KEEP_TOGETHER,
        caption_template: str = "",
        word_captions: WordCaptions | None = None,
        withdrawn: str = "",
    ) -> None:
        """Makes the component.

        Args:
            dataset: The result of `sources.resolve_dataset`: a folder or archive, or a dataset of
                the hub at a commit.
            dataset_fingerprint: The result of `sources.dataset_fingerprint`: the part of the cache
                key that stands for the data. "" accepts whatever is there.
            dataset_config: Configuration of the dataset; "" for its default.
            dataset_split: The dataset's own split to read, several joined by `+`, or `all`.
            eval_fraction: Fraction of the pictures held out, above 0 and below 1.
            seed: Decides which pictures are held out.
            image_column: Column with the pictures; "" to find it.
            caption_column: Column with the captions; "" to find it.
            max_pixels: Larger pictures are rejected before they are decoded.
            max_aspect_ratio: Pictures whose sides differ by a larger factor are rejected.
            max_rejected_fraction: If a larger fraction of the rows is rejected, the component
                fails.
            dataset_form: How the dataset's files are read: the kind of a form in `sources.forms`;
                "" to recognise it from the files.
            caption: Caption of pictures that have none; "" for none.
            captions_from: Source of the captions of pictures that have none: the name of their
                `folder`, their `file_name`, or the `parameters`, the prompt that is written into
                such a picture; "" for none.
            caption_lines: What the lines of a caption file are: one caption, `joined`, or a
                caption `each`.
            near_duplicates: How pictures that are nearly the same are treated: `keep_together` in
                one split, `keep_one` of them, or `ignore` the likeness.
            caption_template: Text with `{caption}` in it that every caption is put into, also those
                held out; "" for none.
            word_captions: How captions are treated if the model learns a new word; `None` if it
                does not.
            withdrawn: File that lists the rows to take out (`storage.withdrawn.read_list`). Their
                near duplicates are taken out, too, whatever `near_duplicates` says; "" for none.

        Raises:
            ValueError: A fraction or limit is out of range, `near_duplicates` is not an allowed
                value, `caption_template` is not a template, or the dataset's address contains a
                secret.
        """
        # A value left open until a compiled pipeline is started is not a string yet.
        if isinstance(dataset, str):
            check_address(dataset)
        if not 0.0 < eval_fraction < 1.0:
            raise ValueError(f"eval_fraction is {eval_fraction}; it must be above 0 and below 1")
        if not 0.0 <= max_rejected_fraction <= 1.0:
            raise ValueError(
                f"max_rejected_fraction is {max_rejected_fraction}; it must be from 0 to 1"
            )
        for name, value, allowed in (
            ("captions_from", captions_from, ("", *CAPTIONS_FROM)),
            ("caption_lines", caption_lines, (LINES_JOINED, LINES_EACH)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels}; it must be at least 1")
        if max_aspect_ratio < 1.0:
            raise ValueError(f"max_aspect_ratio is {max_aspect_ratio}; it must be at least 1")
        if near_duplicates not in NEAR_DUPLICATES:
            raise ValueError(
                f"near_duplicates is {near_duplicates!r}; it must be one of "
                f"{', '.join(NEAR_DUPLICATES)}"
            )
        try:
            CaptionTemplate.parse(caption_template)
        except ValueError as error:
            raise ValueError(f"caption_template is {caption_template!r}: {error}") from None
        super().__init__(
            CaptionExampleGenSpec(
                dataset=dataset,
                dataset_fingerprint=dataset_fingerprint,
                dataset_config=dataset_config,
                dataset_split=dataset_split,
                eval_fraction=float(eval_fraction),
                seed=seed,
                image_column=image_column,
                caption_column=caption_column,
                max_pixels=max_pixels,
                max_aspect_ratio=float(max_aspect_ratio),
                max_rejected_fraction=float(max_rejected_fraction),
                dataset_form=dataset_form,
                caption=caption,
                captions_from=captions_from,
                caption_lines=caption_lines,
                near_duplicates=near_duplicates,
                caption_template=caption_template,
                word_captions=word_captions.to_json() if word_captions else None,
                withdrawn=withdrawn or None,
                code_version=code_version(executor.__name__),
                examples=channel_utils.as_channel([standard_artifacts.Examples()]),
                rejects=channel_utils.as_channel([RejectedRows()]),
            )
        )
