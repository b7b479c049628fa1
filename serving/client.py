"""Pictures from the SavedModels, in this process or on TensorFlow Serving.

Needs none of the packages that the models were built or trained with: TensorFlow for a folder,
tensorflow-serving-api as well for gRPC, and only httpx2 and Pillow for REST. Drawing from pictures
and writing marks into pictures also needs Pillow.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from serving import png, seals
from serving.errors import (
    MissingModelError,
    MissingSignatureError,
    RowsNeededError,
    ServingError,
    VersionGoneError,
    check_place,
)
from serving.releases import (
    ALL_NETWORKS,
    FALLBACK_GUIDANCE_SCALE,
    FALLBACK_STEPS,
    IMAGE_ENCODER,
    SERVED_NETWORKS,
    Release,
    find_model,
    find_release,
    is_model,
)
from serving.request import (
    DEFAULT_SAMPLER,
    check_multiples,
    check_prompts,
    check_request,
    cut_note,
    may_be_cut,
)
from storage.machine import gigabytes
from storage.picture_marks import Marks, digest_of_pixels
from storage.plain_text import plain

if TYPE_CHECKING:
    from serving.pictures import Original

REST_SCHEMES = ("http", "https")
GRPC_SCHEMES = ("grpc", "grpcs")
TIMEOUT_SECONDS = 300.0
RETRIES = 8

# Servers behind one address change versions at different moments, within one poll (ten seconds).
_VERSION_WAITS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)

logger = logging.getLogger(__name__)


class Models(Protocol):
    """The models, wherever they run."""

    def version(self, networks: Sequence[str] = SERVED_NETWORKS) -> int:
        """The version to use now, which all of these networks have.

        Raises:
            MissingModelError: A network is not there in any version.
            ServingError: Anything else is wrong.
        """

    def call(
        self,
        network: str,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        version: int,
    ) -> dict[str, np.ndarray]:
        """Calls a signature of one of the models.

        Texts are arrays of bytes, dtype object.

        Raises:
            VersionGoneError: The version is not there, or no longer.
            MissingSignatureError: The model has no such signature.
            ServingError: Anything else is wrong.
        """

    def encode(self, images: np.ndarray, version: int) -> np.ndarray:
        """Latents, float32 [B, h, w, 4], of pictures uint8 [B, H, W, 3]."""

    def decode(self, latent: np.ndarray, version: int) -> np.ndarray:
        """Pictures, uint8 [B, H, W, 3], of latents float32 [B, h, w, 4]."""

    def free_memory_bytes(self) -> int:
        """The memory that a picture may take where the models run, besides the models."""


class _Options(NamedTuple):
    """The values that all pictures of a request share."""

    num_steps: int
    guidance_scale: float
    sampler: str
    height: int | None
    width: int | None
    original: Original | None = None


class _Row(NamedTuple):
    """The values of one picture of a request."""

    prompt: str
    negative_prompt: str
    seed: int


class _Size(NamedTuple):
    """The size to draw: in pixels if known, and as inputs of a signature if it takes them.

    `most` is how many pictures there is memory for, if known.
    """

    height: int | None
    width: int | None
    asked: Mapping[str, np.ndarray] = MappingProxyType({})
    most: int | None = None


class Generator:
    """Draws pictures with one release of a serving directory, or with the models of a server.

    The same prompts, seed and numbers give the same picture in all three ways. Several threads
    may use one object.

    Attributes:
        address: The address as given.
        release: The release that was loaded; None for a server, which does not tell.
        num_steps: Sampling steps if a request names none.
        guidance_scale: Guidance scale if a request names none.
        sampler: Sampler if a request names none.
    """

    def __init__(
        self,
        address: str,
        version: int | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        memory_limit_bytes: int | None = None,
        verification: seals.Verification | None = None,
    ) -> None:
        """Loads the models of a folder, or gets ready to talk to a server.

        Args:
            address: A serving directory, local or one that `tf.io.gfile` can read; the folder of
                one model, as the Trainer leaves it; or the address of a TensorFlow Serving,
                `http://HOST:8501` for REST or `grpc://HOST:8500` for gRPC (`https` and `grpcs` for
                TLS).
            version: The version to use. If None: for a folder, the current release; for a server,
                the newest version that all needed models have, looked up again for each picture.
            timeout_seconds: The longest that one call to a server may take, with its retries.
            retries: How often to repeat a call that the server could not answer at the time.
            memory_limit_bytes: The memory that a picture may take besides the models; a height and
                width that need more are refused. If None, the memory that is free now, or
                `serving.remote.SERVERS_MEMORY_BYTES` for a server, which does not tell.
            verification: What to verify of a release before it is loaded; `None` for nothing.

        Raises:
            ServingError: The directory, the release or one of its models is missing or damaged,
                the release is not what was pushed or signed, the address has a secret in it, or a
                number is out of range.
        """
        check_place(address)
        if not 0 < timeout_seconds < math.inf:
            raise ServingError(f"the timeout is {timeout_seconds} s; it must be more than 0")
        if retries < 0:
            raise ServingError(f"the number of retries is {retries}; it must be 0 or more")
        if memory_limit_bytes is not None and memory_limit_bytes <= 0:
            limit = gigabytes(memory_limit_bytes)
            raise ServingError(f"the memory limit is {limit}; it must be more than 0")
        self._memory_limit_bytes = memory_limit_bytes
        self.address = address
        self.release: Release | None = None
        self.num_steps, self.guidance_scale = FALLBACK_STEPS, FALLBACK_GUIDANCE_SCALE
        self.sampler = DEFAULT_SAMPLER
        self._last_version: int | None = None
        self._trainings: dict[int, str | None] = {}
        # Versions known to draw each picture by itself, and versions known to take only rows.
        self._apart: set[int] = set()
        self._in_batches: set[int] = set()
        # Each of these is slow to import, or need not be installed.
        scheme = scheme_of(address)
        if scheme in REST_SCHEMES:
            from serving.over_rest import RestModels

            self._models: Models = RestModels(address, version, timeout_seconds, retries)
        elif scheme in GRPC_SCHEMES:
            from serving.over_grpc import GrpcModels

            self._models = GrpcModels(address, version, timeout_seconds, retries)
        else:
            self.release = (
                find_model(address) if is_model(address) else find_release(address, version)
            )
            if verification is not None:
                self.release.check_complete()
                seals.check(self.release, verification)
            self.num_steps = self.release.num_steps
            self.guidance_scale = self.release.guidance_scale
            self.sampler = self.release.sampler
            from serving.in_process import LoadedModels

            self._models = LoadedModels(self.release)

    @property
    def version(self) -> int:
        """The version of the latest picture; before the first, the version that would be used."""
        if self._last_version is None:
            self._last_version = self._models.version()
        return self._last_version

    def generate(
        self,
        prompts: Sequence[str],
        negative_prompts: str | Sequence[str] | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] = 0,
        height: int | None = None,
        width: int | None = None,
        image: np.ndarray | None = None,
        strength: float | None = None,
        mask: np.ndarray | None = None,
        together: int = 1,
        on_picture: Callable[[int, np.ndarray], None] | None = None,
        on_marks: Callable[[Marks], None] | None = None,
        on_cut: Callable[[str, str | None], None] | None = None,
    ) -> np.ndarray:
        """Draws one picture per prompt.

        Each picture depends only on its own prompts, seed and numbers, not on its neighbours or
        its place among them. Drawn by itself, it is the same to the bit; drawn with others, it is
        the same except for how kernels round at another batch size. A server that draws requests
        together does so with all requests that arrive at the same moment.

        Drawing from a picture makes the last `strength * num_steps` steps, beginning with that
        picture below as much noise as these steps take away. The picture is scaled to cover the
        height and width, and cropped to them. If there is a mask, the pixels outside it are those
        of the given picture.

        Args:
            prompts: What to draw. No prompt may be empty; use a guidance scale of 0 for a picture
                of nothing in particular.
            negative_prompts: What to avoid, for all pictures or one per picture.
            num_steps: Sampling steps, 1 to 1000; the release's default if None.
            guidance_scale: How strictly to follow the prompt, 0 or more; 1 is no guidance. The
                release's default if None.
            sampler: One of `serving.request.SAMPLERS`; the release's default if None.
            seed: 0 to 2**64 - 1, for all pictures or one per picture.
            height: In pixels, a multiple of the release's `size_multiple`; the size that the
                release was trained at if None.
            width: Like `height`.
            image: A picture to draw from, uint8 [H, W, 3], of any size.
            strength: How much of the picture may change, from 0 to 1, which begins with pure
                noise. If None, `serving.pictures.DEFAULT_STRENGTH`, or `DEFAULT_MASKED_STRENGTH`
                with a mask.
            mask: Mask of the picture, bool [H, W], true where it is drawn anew; everywhere if None.
            together: How many pictures to draw at once, as far as memory allows.
            on_picture: Called with the index of each picture and the picture, once it is drawn.
            on_marks: Called with the marks of each picture, in order; see
                `storage.picture_marks.encode`.
            on_cut: Called once with each prompt or negative prompt that is longer than the text
                encoder reads, and its words that are cut off. These are None if the prompt may be
                too long and the release is too old to say. If None, a warning is logged.

        Returns:
            uint8 [B, H, W, 3].

        Raises:
            ServingError: A prompt is empty, a value is out of range, the numbers of prompts,
                negative prompts and seeds disagree, the release is too old for the sampler or the
                size, or cannot draw from pictures, the size needs more memory than there is, a
                model fails, or a server does not answer, refuses the request or takes too long.
        """
        if isinstance(prompts, str):
            raise ServingError("prompts is a single text; give a list of prompts")
        check_prompts(prompts)
        negatives = _one_each(
            "" if negative_prompts is None else negative_prompts, len(prompts), "negative prompts"
        )
        seeds = _one_each(seed, len(prompts), "seeds")
        if num_steps is None:
            num_steps = self.num_steps
        if guidance_scale is None:
            guidance_scale = self.guidance_scale
        if sampler is None:
            sampler = self.sampler
        check_request(
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            seeds=seeds,
            sampler=sampler,
            height=height,
            width=width,
            strength=strength,
        )
        if together < 1:
            raise ServingError(
                f"the number of pictures to draw together is {together}; it must be 1 or more"
            )
        original = None
        if any(given is not None for given in (image, strength, mask)):
            # Imports Pillow.
            from serving.pictures import Original

            original = Original.of(image, strength, mask)
        options = _Options(num_steps, guidance_scale, sampler, height, width, original)
        rows = list(map(_Row, prompts, negatives, seeds))
        pictures: list[np.ndarray] = []
        tell = on_cut or (lambda prompt, cut: logger.warning("%s.", cut_note(prompt, cut)))
        unknown = dict.fromkeys(filter(may_be_cut, (*prompts, *negatives)))
        for start in range(0, len(rows), together):
            some = rows[start : start + together]
            texts = [text for row in some for text in (row.prompt, row.negative_prompt)]
            # Before the pictures, which take a while.
            for text in (text for text in dict.fromkeys(texts) if text in unknown):
                del unknown[text]
                cut = self._cut(text)
                if cut != "":
                    tell(text, cut)
            version, drawn = self._draw(some, options)
            for row, picture in zip(some, drawn, strict=True):
                pictures.append(picture)
                if on_marks is not None:
                    on_marks(self._marks(row, options, version, picture))
                if on_picture is not None:
                    on_picture(len(pictures) - 1, picture)
        return np.stack(pictures)

    def _cut(self, prompt: str) -> str | None:
        """The words of a prompt that are cut off; None if the models cannot tell."""
        version = self._models.version()
        try:
            inputs = {"prompt": _texts([prompt])}
            found = self._models.call("text_encoder", "cut", inputs, ("cut_bytes",), version)
        # Older releases lack this signature. Any other error will come up again.
        except ServingError:
            return None
        return bytes(found["cut_bytes"][0]).decode("utf-8", "replace")

    def _marks(self, row: _Row, options: _Options, version: int, picture: np.ndarray) -> Marks:
        original = options.original
        mask = None if original is None else original.mask
        height, width, _ = picture.shape
        return Marks(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            num_steps=options.num_steps,
            sampler=options.sampler,
            guidance_scale=float(options.guidance_scale),
            seed=row.seed,
            height=height,
            width=width,
            strength=None if original is None else float(original.strength),
            image_sha256=None if original is None else digest_of_pixels(original.pixels),
            mask_sha256=None if mask is None else digest_of_pixels(mask),
            release=version or None,
            **(self._told(version) if self.release is None else self.release.marks),
        )

    def _told(self, version: int) -> dict[str, str | None]:
        """What a server says about the release: only which training made it."""
        if version not in self._trainings:
            inputs, outputs = {"prompt": _texts([""])}, ("training_id_bytes",)
            training = None
            # Older releases do not know; the picture is drawn all the same.
            with contextlib.suppress(ServingError):
                found = self._models.call("text_encoder", "training", inputs, outputs, version)
                training = bytes(found["training_id_bytes"][0]).decode()
            self._trainings[version] = training
        return {"training_id": self._trainings[version]}

    def _draw(self, rows: Sequence[_Row], options: _Options) -> tuple[int, list[np.ndarray]]:
        """Draws with one version of all models, even if the server changes versions meanwhile."""
        for wait in _VERSION_WAITS_SECONDS:
            time.sleep(wait)
            version = self._version_for(options.original)
            try:
                pictures = self._draw_with(rows, options, version)
            except VersionGoneError as error:
                gone = error
                continue
            self._last_version = version
            return version, pictures
        raise gone

    def _draw_with(self, rows: Sequence[_Row], options: _Options, version: int) -> list[np.ndarray]:
        if len(rows) > 1 and version not in self._apart and version not in self._in_batches:
            try:
                return self._draw_together(rows, options, version)
            except MissingSignatureError:
                self._apart.add(version)
        if version not in self._in_batches:
            # A refusal here comes before anything is computed.
            try:
                return [self._draw_alone(row, options, version) for row in rows]
            except RowsNeededError:
                self._in_batches.add(version)
        return self._draw_together(rows, options, version)

    def _draw_together(
        self, rows: Sequence[_Row], options: _Options, version: int
    ) -> list[np.ndarray]:
        """Draws with signatures that take one row per picture.

        Raises:
            MissingSignatureError: The models are of an older version without these signatures.
        """
        size = self._size(options, version, of_rows=True, alone=len(rows) == 1)
        most = size.most or len(rows)
        pieces = (rows[start : start + most] for start in range(0, len(rows), most))
        return [
            picture
            for piece in pieces
            for picture in self._draw_rows(piece, size, options, version)
        ]

    def _draw_rows(
        self, rows: Sequence[_Row], size: _Size, options: _Options, version: int
    ) -> list[np.ndarray]:
        count = len(rows)
        request = {
            **self._contexts(rows, version),
            "num_steps": np.full(count, options.num_steps, np.int32),
            "guidance_scale": np.full(count, options.guidance_scale, np.float32),
            "seed": np.stack([_seed_pair(row.seed) for row in rows]),
            "sampler": np.array([options.sampler.encode()] * count, object),
        }
        signature, fitted = "rows", None
        if options.original is None:
            for side in ("height", "width"):
                request[side] = np.full(count, size.asked.get(side, 0), np.int32)
        else:
            signature, fitted = "rows_from_image", _fitted(options.original, size)
            file = {"image_bytes": np.array([png.encode(fitted.pixels)], object)}
            encoded = self._models.call("image_encoder", "rows", file, ("latent_bytes",), version)
            mask = b"" if fitted.mask is None else png.encode(_as_picture(fitted.mask))
            request["latent_bytes"] = np.repeat(encoded["latent_bytes"], count)
            request["strength"] = np.full(count, fitted.strength, np.float32)
            request["mask_bytes"] = np.array([mask] * count, object)
        outputs = ("latent_bytes", "problem_bytes")
        found = self._models.call("diffusion_model", signature, request, outputs, version)
        # Reported per row, because other rows of the batch are fine: the call itself succeeds.
        for problem in filter(None, found["problem_bytes"]):
            reason = bytes(problem).decode("utf-8", "replace")
            raise ServingError(f"{self.address} refuses the request to diffusion_model: {reason}")
        latents = {"latent_bytes": found["latent_bytes"]}
        files = self._models.call("decoder", "rows", latents, ("image_bytes",), version)
        pictures = [png.decode(bytes(file)) for file in files["image_bytes"]]
        return pictures if fitted is None else [fitted.kept(picture) for picture in pictures]

    def _draw_alone(self, row: _Row, options: _Options, version: int) -> np.ndarray:
        size = self._size(options, version)
        request = {
            **self._contexts([row], version),
            "num_steps": np.array(options.num_steps, np.int32),
            "guidance_scale": np.array(options.guidance_scale, np.float32),
            "seed": _seed_pair(row.seed),
        }
        if options.original is None:
            latent = self._sample(request, options.sampler, size.asked, version)
            picture: np.ndarray = self._models.decode(latent, version)[0]
            return picture
        fitted = _fitted(options.original, size)
        latent = self._sample_from(fitted, request, options.sampler, version)
        return fitted.kept(self._models.decode(latent, version)[0])

    def _contexts(self, rows: Sequence[_Row], version: int) -> dict[str, np.ndarray]:
        texts = {
            "prompt": _texts(row.prompt for row in rows),
            "negative_prompt": _texts(row.negative_prompt for row in rows),
        }
        outputs = ("context", "unconditional_context")
        return self._models.call("text_encoder", "text", texts, outputs, version)

    def _version_for(self, original: Original | None) -> int:
        if original is None:
            return self._models.version()
        try:
            return self._models.version(ALL_NETWORKS)
        except MissingModelError as error:
            if error.network != IMAGE_ENCODER:
                raise
            raise no_image_encoder(self.address, self.release) from None

    def _size(
        self, options: _Options, version: int, *, of_rows: bool = False, alone: bool = True
    ) -> _Size:
        """The size to draw; one picture at the training size needs no call.

        Raises:
            MissingSignatureError: Rows are requested, and the models are of an older version.
            ServingError: The models cannot draw this size, or lack the memory for it.
        """
        own = self.release.image_size if self.release else None
        given = options.height or options.width
        # The given picture must be fitted to this size, and a server only tells it when called.
        unknown = own is None and options.original is not None
        # A server takes care of that itself.
        countable = not alone and self.release is not None
        is_own = {options.height or own, options.width or own} == {own}
        if is_own and not unknown and not countable:
            return _Size(own, own)
        asked = {
            name: np.array([side or 0] if of_rows else side or 0, np.int32)
            for name, side in (("height", options.height), ("width", options.width))
        }
        outputs = ("height", "width", "multiple", "peak_memory")
        signature = "size_of_rows" if of_rows else "size"
        try:
            found = self._models.call("diffusion_model", signature, asked, outputs, version)
        except MissingSignatureError:
            if of_rows:
                raise
            raise ServingError(
                f"release {version} of {self.address} is too old for a height and width; it draws "
                "only the size that it was trained at: leave them out, or use a newer release"
            ) from None
        height, width, multiple, peak = (found[name][0] for name in outputs)
        check_multiples(options.height, options.width, int(multiple))
        allowed = self._memory_limit_bytes or self._models.free_memory_bytes()
        if given and peak > allowed:
            raise ServingError(
                f"a picture of {width:.0f} x {height:.0f} pixels needs up to {gigabytes(peak)} of "
                f"memory besides the models, but only {gigabytes(allowed)} are available: choose a "
                "smaller size, or raise --memory-limit if there is more memory"
            )
        most = max(1, int(allowed // peak)) if countable else None
        return _Size(int(height), int(width), asked, most)

    def _sample_from(
        self, original: Original, request: Mapping[str, np.ndarray], sampler: str, version: int
    ) -> np.ndarray:
        """The latent drawn from a picture that already has the size to draw."""
        inputs = {
            **request,
            "sampler": np.array(sampler.encode(), object),
            "latent": self._models.encode(original.pixels[None], version),
            "strength": np.array(original.strength, np.float32),
        }
        signature = "from_image"
        if original.mask is not None:
            signature, inputs["mask"] = "inpaint", original.mask[None].astype(np.uint8)
        outputs = ("latent",)
        return self._models.call("diffusion_model", signature, inputs, outputs, version)["latent"]

    def _sample(
        self,
        request: Mapping[str, np.ndarray],
        sampler: str,
        size: Mapping[str, np.ndarray],
        version: int,
    ) -> np.ndarray:
        outputs = ("latent",)
        # Every release has this signature, even those with only one sampler and size.
        signature, inputs = "serving_default", {**request, **size}
        if size or sampler != DEFAULT_SAMPLER:
            signature = "sample_at_size" if size else "sample"
            inputs["sampler"] = np.array(sampler.encode(), object)
        try:
            found = self._models.call("diffusion_model", signature, inputs, outputs, version)
        except MissingSignatureError:
            if sampler == DEFAULT_SAMPLER:
                raise
            raise ServingError(
                f"release {version} of {self.address} is too old for the sampler {sampler}; it "
                f"draws only with {DEFAULT_SAMPLER}: choose that, or use a newer release"
            ) from None
        return found["latent"]


def no_image_encoder(address: str, release: Release | None) -> ServingError:
    """The error for a request to draw from a picture without an image encoder."""
    which = f"release {release.version} of {address}" if release and release.version else address
    return ServingError(
        f"{which} has no image encoder, so it draws only from text: leave the picture out, or use "
        "a release that was pushed with serving.image_to_image"
    )


def scheme_of(address: str) -> str:
    """The part of an address before `://`; empty for a local path."""
    scheme, separator, _ = address.partition("://")
    return scheme.lower() if separator else ""


def is_server(address: str) -> bool:
    """Whether this is the address of a server, not of a folder."""
    return scheme_of(address) in (*REST_SCHEMES, *GRPC_SCHEMES)


def _one_each(values: Any, count: int, what: str) -> list[Any]:
    if isinstance(values, (str, int)):
        return [values] * count
    if len(values) != count:
        raise ServingError(
            f"there are {len(values)} {what} for {count} prompts; give one or {count}"
        )
    return list(values)


def _texts(prompts: Iterable[str]) -> np.ndarray:
    return np.array([plain(prompt).encode() for prompt in prompts], object)


def _fitted(original: Original, size: _Size) -> Original:
    assert size.height is not None
    assert size.width is not None
    return original.fitted(size.height, size.width)


def _as_picture(mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], white where bool [H, W] is true."""
    return np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)


def _seed_pair(seed: int) -> np.ndarray:
    """The seed as TensorFlow's stateless operations take it: int32 [2], low half first."""
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32)
