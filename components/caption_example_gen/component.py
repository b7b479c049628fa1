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
        # A `WordCaptions` as JSON; without it, no new word is learned.
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
    """Reads captioned pictures, checks every row and splits them into train and eval.

    Outputs:
      examples: `standard_artifacts.Examples`, splits train and eval, gzip TFRecord of tf.Example
        with `id` (hash of picture and caption), `image/id` (hash of the picture), `image/encoded`
        (the source's own bytes), `image/format`, `image/height`, `image/width`,
        `image/aspect_ratio` (width / height), `image/brightness` (mean luma, 0 to 1), `caption`,
        `repeats` (how often an epoch sees it; of datasets that say so),
        `caption/num_tokens` (uncut) and `caption/words` (lower case). Custom properties:
        `dataset`, `dataset_fingerprint`, `dataset_revision` (the hub's commit), `dataset_kind`,
        `dataset_taken_for` (what its files were taken for, and why),
        `image_column`, `caption_column`, `num_train`, `num_eval`, `captions_truncated`,
        `captions_left_right`, `images_animated`, `rejected_total`; `captions_replaced`, where a new
        word is learned that some lacked; and, unless they were ignored,
        `near_duplicate_groups` and `near_duplicate_pictures`; and `caption_template`, where there
        is one. Beside the splits lie `rows`, with ids and captions alone (`storage.row_index`), and
        `near_duplicates.json` (`groups_file.read_groups`). Where something is withdrawn,
        `withdrawn_digest` names the list of it, and `withdrawn_rows` is the number of rows.
      rejects: `components.RejectedRows`, the rows that cannot be used and why; where there is a
        list of what is withdrawn, also `withdrawn.json`, a `storage.withdrawn.Withdrawn`.

    A picture with several captions gives an example for each of them.

    A picture's split depends on its bytes and the seed alone, so it does not move when rows are
    added, and the same picture with another caption is in the same split. Near duplicates go where
    the one with the smallest hash goes, so a new one may move its group, and no other picture. Only
    a split that would be empty gets a picture of the other one. The files are the same
    byte for byte, whatever the number of workers.
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
            dataset: What `sources.resolve_dataset` says: a folder or archive, or a dataset of the
                hub at a commit.
            dataset_fingerprint: What `sources.dataset_fingerprint` says: the part of the cache key
                that stands for the data. "" takes what is there.
            dataset_config: The dataset's configuration; "" for its default one.
            dataset_split: The dataset's own split to read, several joined by `+`, or `all`.
            eval_fraction: Fraction of the pictures held out, above 0 and below 1.
            seed: Decides which.
            image_column: Column with the pictures; "" to find it.
            caption_column: Column with the captions; "" to find it.
            max_pixels: Larger pictures are rejected before they are unpacked.
            max_aspect_ratio: Pictures whose sides differ by a larger factor are rejected.
            max_rejected_fraction: With more rows rejected than this, the component fails.
            dataset_form: What the dataset's files are taken for, the kind of a form in
                `sources.forms`; "" to tell from them.
            caption: The caption of pictures that have none; "" for nothing of the kind.
            captions_from: `folder` or `file_name`, whose names become the captions of pictures
                that have none, or `parameters`, the prompt that is written into such a picture; ""
                for nothing of the kind.
            caption_lines: What the lines of a caption's file are: `joined`, one caption, or a
                caption `each`.
            near_duplicates: What becomes of pictures that are nearly the same: `keep_together` in
                one split, `keep_one` of them, or `ignore` that they are.
            caption_template: Text with `{caption}` in it that every caption is put into, those that
                are held out, too; "" for none.
            word_captions: What becomes of captions where a new word is learned; `None`: none is.
            withdrawn: File that lists what is taken out (`storage.withdrawn.read_list`), with near
                duplicates, whatever becomes of these otherwise; "" for nothing.

        Raises:
            ValueError: A fraction or limit is out of its range, `near_duplicates` is none of those
                named, `caption_template` is no template, or the dataset's address has a secret in
                it.
        """
        # What is left open until a compiled pipeline is started is no text yet.
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
