"""The names of tensors in the original layout of Stable Diffusion v1.x, from CompVis's code.

It is diffusers' layout under other names, by a single rule for networks of any size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

UNET, _VAE, TEXT_ENCODER = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
)
_TEXT_ROOT = "text_model."
# Prefixes of the tensor names of each network: an unknown name with such a prefix belongs to
# another model.
_BEGINNINGS: Mapping[str, tuple[str, ...]] = {
    "text_encoder": tuple(
        f"{TEXT_ENCODER}{root}{part}."
        for root in (_TEXT_ROOT, "")
        for part in ("embeddings", "encoder", "final_layer_norm")
    ),
    "image_encoder": (f"{_VAE}encoder.", f"{_VAE}quant_conv."),
    "diffusion_model": (UNET,),
    "decoder": (f"{_VAE}decoder.", f"{_VAE}post_quant_conv."),
}
# A constant that older versions of transformers keep with the weights.
_POSITIONS = ".position_ids"
# A moving average has the name of its weight, without the dots.
_AVERAGES = "model_ema."
AVERAGED = f"{_AVERAGES}diffusion_model"

_BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?(?:\.(?P<level>\d+))?"
    r"\.(?P<kind>resnet|attention|downsampler|upsampler)s\.(?P<index>\d+)\.(?P<rest>.+)"
)
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_PARTS = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
}


def network_of(key: str) -> str | None:
    """The network of `trainer.presets.NETWORKS` that a tensor belongs to; `None` if to none."""
    if key.endswith(_POSITIONS):
        return None
    return next((n for n, begins in _BEGINNINGS.items() if key.startswith(begins)), None)


def original_names(network: str, names: Sequence[str]) -> list[str]:
    """The names of the tensors of a network in this layout.

    Args:
        network: One of `trainer.presets.NETWORKS`.
        names: All their names in diffusers: the number of blocks matters.
    """
    if network == "text_encoder":
        return [f"{TEXT_ENCODER}{name}" for name in names]
    if network == "diffusion_model":
        return [f"{UNET}{name}" for name in _unet_names(names)]
    return [f"{_VAE}{name}" for name in _vae_names(names)]


def current_names(network: str, names: Sequence[str], keys: Collection[str]) -> dict[str, str]:
    """The names in diffusers of the tensors in a file that belong to a network.

    If a diffusion model comes with averages, as the original training writes it, the averages are
    only read if there is nothing else, as in other tools: merging models leaves them unchanged.

    Args:
        network: One of `trainer.presets.NETWORKS`.
        names: The names of its tensors in diffusers.
        keys: The keys of the file.

    Returns:
        Names by key; an unknown key that should belong to the network maps to itself.
    """
    spelled = dict(zip(original_names(network, names), names, strict=True))
    if spelled.keys().isdisjoint(keys):
        # Some files use these two other spellings.
        if network == "diffusion_model":
            spelled = {
                _AVERAGES + key.removeprefix("model.").replace(".", ""): name
                for key, name in spelled.items()
            }
        elif network == "text_encoder":
            spelled = {key.replace(_TEXT_ROOT, "", 1): name for key, name in spelled.items()}
    return {
        key: spelled.get(key, key) for key in keys if key in spelled or network_of(key) == network
    }


def _unet_names(names: Sequence[str]) -> list[str]:
    # On the way up, a level has one block more than on the way down, which has a sampler instead.
    blocks = 1 + max(
        int(block["index"])
        for name in names
        if (block := _BLOCK.fullmatch(name)) and block["side"] == "up"
    )
    attention = {
        block["level"]
        for name in names
        if (block := _BLOCK.fullmatch(name))
        and (block["side"], block["kind"]) == ("up", "attention")
    }

    def renamed(name: str) -> str:
        block = _BLOCK.fullmatch(name)
        if block is None:
            return _replaced(name, _UNET_ENDS)
        kind, rest, index = block["kind"], block["rest"], int(block["index"])
        if kind == "resnet":
            rest = _replaced(rest, _UNET_PARTS)
        if block["side"] == "mid":
            # A residual block, the attention and another residual block.
            return f"middle_block.{1 if kind == 'attention' else 2 * index}.{rest}"
        first = int(block["level"]) * blocks
        if kind == "downsampler":
            return f"input_blocks.{first + blocks}.0.{rest.replace('conv.', 'op.')}"
        if kind == "upsampler":
            after = 2 if block["level"] in attention else 1
            return f"output_blocks.{first + blocks - 1}.{after}.{rest}"
        place = f"{first + index}." if block["side"] == "up" else f"{1 + first + index}."
        side = "output" if block["side"] == "up" else "input"
        return f"{side}_blocks.{place}{1 if kind == 'attention' else 0}.{rest}"

    return list(map(renamed, names))


def _vae_names(names: Sequence[str]) -> list[str]:
    found = (_BLOCK.fullmatch(name.removeprefix("decoder.")) for name in names)
    top = max((int(b["level"]) for b in found if b and b["side"] == "up"), default=0)

    def renamed(name: str) -> str:
        half, _, inner = name.partition(".")
        block = _BLOCK.fullmatch(inner)
        if block is None:
            return name.replace("conv_norm_out", "norm_out")
        kind, index, rest = block["kind"], int(block["index"]), block["rest"]
        rest = _replaced(rest, _VAE_PARTS)
        if block["side"] == "mid":
            part = "attn" if kind == "attention" else "block"
            return f"{half}.mid.{part}_{index + 1}.{rest}"
        # The original counts levels from the picture on the way up too.
        level = int(block["level"])
        place = f"down.{level}" if block["side"] == "down" else f"up.{top - level}"
        if kind == "resnet":
            return f"{half}.{place}.block.{index}.{rest}"
        return f"{half}.{place}.{kind.removesuffix('r')}.{rest}"

    return list(map(renamed, names))


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    """A name whose first part, all but `weight` or `bias`, is replaced."""
    part, _, kind = name.rpartition(".")
    return f"{parts.get(part, part)}.{kind}"
