"""Finds groups of near duplicates: the same picture in another size, quality or crop.

Every picture has a sketch of 32 x 32 pixels. A few of its lowest frequencies (the ones a perceptual
hash uses, but as numbers instead of bits) find candidates, in blocks of similar pictures.
Candidates are aligned as well as possible by shifting and scaling, and compared: first all of them
coarsely, then the remaining ones by the remaining difference and by the colours of even areas. A
hash alone would treat sprites that differ only in colour as the same; and a crop or a border
changes a hash about as much as another picture does.

Nothing here is random, and the answer for a pair does not depend on the other pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import fft, ndimage, sparse
from threadpoolctl import threadpool_limits

from storage.images import SKETCH_SIDE


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much two aligned pictures may differ.

    Measured by `python -m benchmarks.near_duplicates`; docs/datasets.md has the numbers.

    Attributes:
        difference: Root mean squared difference at half the size of the sketch, as a fraction of
            the picture's own standard deviation.
        inner: The same for the middle only, so that a shared frame does not outweigh the rest.
        colour: Largest difference of areas that are even in both, in levels of 255 of Y, Cb or Cr.
    """

    difference: float
    inner: float
    colour: float


PAIR = Limits(difference=0.2, inner=0.3, colour=2.5)
"""Limits for two pictures that are near duplicates."""

CHAIN = Limits(difference=0.4, inner=0.6, colour=5.0)
"""Limits for the first picture of a group and any other: twice `PAIR`, since a third picture may
connect them."""

_SIDE = SKETCH_SIDE
_COARSE = 8
# A margin is cut off if its lines are even within this many levels and this many pixels are left.
_EVEN = 5.0
_LEAST_LEFT = 14
# A smaller deviation, in levels, is only JPEG noise on an even picture.
_LEAST_DEVIATION = 3.0
# For candidates: their distance, their number, views of a picture, the size of the blocks that are
# compared at once, the coarse differences before and after alignment, and the limits of shifting
# and scaling.
_RADIUS = 0.55
_LEAST_SCORE = -_RADIUS * _RADIUS / 2
_NEIGHBOURS = 8
_MOST_VIEWS = 3
_BLOCK = 512
_RIM_FRACTION = 0.05
_COARSE_DIFFERENCE = 0.65
_PLACED_DIFFERENCE = 0.7
_ASPECTS = 0.15
_LEAST_OVERLAP = 0.5
_SCALES = (0.78, 1.28)
_MOST_SHIFT = 0.25
# An area with a steeper gradient, in levels per pixel, is not even.
_EDGE = 6.0
# Mean colours count little for candidates: a crop changes them too.
_MEAN_SCALE = 60.0
# Width of the rim around the middle of a picture, in pixels at half the size of the sketch.
_RIM = 3
# Sides in pixels at which pictures are aligned, coarse to fine.
_STEPS = (8, 8, 16, 16, 32)
_COARSE_STEPS = (8, 8, 8)
_CHUNK = 1024
# Random weights for the checksum of a sketch.
_WORDS = np.random.default_rng(0).integers(1, 2**64, _SIDE * _SIDE * 3 // 8, np.uint64)


def group(sketches: np.ndarray, aspects: np.ndarray) -> list[np.ndarray]:
    """Finds groups of near duplicates.

    Near duplicates, and pictures connected through near duplicates, are in one group. But every
    picture must resemble the first of its group (`CHAIN`); one that does not starts a new group, so
    that a chain of small steps does not run through a whole dataset.

    Args:
        sketches: uint8 [N, 32, 32, 3] as `storage.images.inspect_image` makes them. Their order
            decides which picture is first in a group. May be a memory-mapped file.
        aspects: float [N], width divided by height of the pictures.

    Returns:
        int arrays of two or more positions each, in ascending order; the groups are sorted by their
        first position.
    """
    if len(sketches) < 2:
        return []
    # The matrices are small: threads would need longer to synchronise than to multiply.
    with threadpool_limits(1, "blas"):
        return _groups(sketches, aspects)


def resembling(sketches: np.ndarray, aspects: np.ndarray, wanted: Sequence[int]) -> dict[int, int]:
    """Finds all near duplicates of some pictures: the groups in which they would be first.

    There is no limit on their number: when pictures are withdrawn, a ninth near duplicate must not
    stay.

    Args:
        sketches: As for `group`.
        aspects: As for `group`.
        wanted: Positions of the pictures.

    Returns:
        Maps the position of each near duplicate that is not itself wanted to the position of the
        wanted picture that it resembles.
    """
    if not len(wanted):
        return {}
    with threadpool_limits(1, "blas"):
        views = _Views.of(sketches, aspects, np.arange(len(sketches)))
        firsts = {int(position): int(position) for position in wanted}
        new, direct = sorted(firsts), True
        while new:
            found: dict[int, int] = {}
            for pair in views.near(views.candidates_of(new), PAIR).tolist():
                for one, other in (pair, reversed(pair)):
                    if one in firsts and other not in firsts:
                        found[other] = min(firsts[one], found.get(other, firsts[one]))
            if not direct:
                # A third picture connects them, so small steps must not lead away from the first.
                found = {
                    other: first
                    for other, first in found.items()
                    if len(views.near(views.combinations(first, np.array([other])), CHAIN))
                }
            firsts |= found
            new, direct = sorted(found), False
    return {other: first for other, first in firsts.items() if other != first}


def _groups(sketches: np.ndarray, aspects: np.ndarray) -> list[np.ndarray]:
    copies = _copies(sketches, aspects)
    views = _Views.of(sketches, aspects, np.array([positions[0] for positions in copies], int))
    pairs = views.near(views.candidates(), PAIR)
    edges = sparse.coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(copies), len(copies)))
    _, labels = sparse.csgraph.connected_components(edges, directed=False)
    several = np.array([len(positions) > 1 for positions in copies])
    # Most pictures are alone, and cost nothing below.
    alone = (np.bincount(labels)[labels] == 1) & ~several
    found = []
    for members in _connected(labels, np.flatnonzero(~alone)):
        for star in _stars(members, views):
            positions = np.sort(np.concatenate([copies[member] for member in star]))
            if len(positions) > 1:
                found.append(positions)
    return sorted(found, key=lambda positions: int(positions[0]))


def _copies(sketches: np.ndarray, aspects: np.ndarray) -> list[list[int]]:
    """For each distinct sketch, the positions that have it."""
    tenths = np.round(10 * aspects).astype(np.int32)
    sums = np.concatenate(
        [
            (
                sketches[start : start + _CHUNK].reshape(-1, 8 * len(_WORDS)).view(np.uint64)
                * _WORDS
            ).sum(1)
            for start in range(0, len(sketches), _CHUNK)
        ]
    )
    # Only sketches with the same sum can be the same, and most sums are unique.
    _, which, counts = np.unique(sums, return_inverse=True, return_counts=True)
    seen: dict[tuple[int, int, bytes], list[int]] = {}
    for position, is_alone in enumerate((counts[which] == 1).tolist()):
        same = b"" if is_alone else hashlib.blake2b(sketches[position], digest_size=16).digest()
        seen.setdefault((int(which[position]), int(tenths[position]), same), []).append(position)
    return list(seen.values())


def _connected(labels: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The chosen members of each component, in ascending order."""
    if len(chosen):
        members = chosen[np.argsort(labels[chosen], kind="stable")]
        yield from np.split(members, np.flatnonzero(np.diff(labels[members])) + 1)


def _stars(members: np.ndarray, views: _Views) -> Iterator[np.ndarray]:
    """Splits a component so that every member of a part resembles its first."""
    while len(members) > 2:
        near = views.near(views.combinations(members[0], members[1:]), CHAIN)
        inside = np.isin(members, near)
        inside[0] = True
        yield members[inside]
        members = members[~inside]
    if len(members):
        yield members


@dataclasses.dataclass(frozen=True)
class _Views:
    """Views of pictures: whole, without a frame, and without a second frame, if these differ.

    Attributes:
        sketches: Sketches of the pictures; see `group`.
        position: int [V], position in `sketches` of each view's picture.
        owner: int [V], the number of its picture.
        box: int [V, 2, 2], first and last (exclusive) row and column.
        aspect: float32 [V], logarithm of width divided by height.
        coarse: float16 [V, 3, 8, 8], Y, Cb, Cr scaled down, without the rim, which may be half a
            border.
    """

    sketches: np.ndarray
    position: np.ndarray
    owner: np.ndarray
    box: np.ndarray
    aspect: np.ndarray
    coarse: np.ndarray

    @classmethod
    def of(cls, sketches: np.ndarray, aspects: np.ndarray, positions: np.ndarray) -> _Views:
        parts = []
        for start in range(0, len(positions), _CHUNK):
            some = positions[start : start + _CHUNK]
            pixels = _channels(sketches[some])
            aspect = np.log(aspects[some]).astype(np.float32)
            for which, box, inside in _boxes(pixels):
                height, width = (box[:, axis, 1] - box[:, axis, 0] for axis in (0, 1))
                parts.append(
                    (
                        some[which],
                        which + start,
                        box,
                        aspect[which] + np.log(width / height).astype(np.float32),
                        _cut_out(inside, _inside(box), _COARSE).astype(np.float16),
                    )
                )
        return cls(sketches, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def candidates(self) -> np.ndarray:
        """Pairs of views, int [C, 3]; the last number says whether the second one is mirrored."""
        descriptors, odd = _descriptors(self.coarse.astype(np.float32))
        tiles = _Tiles.of(descriptors, odd, self.owner)
        every = np.concatenate([np.zeros((0, 3), np.int64), *tiles.pairs()])
        every[:, :2].sort(axis=1)
        return np.unique(every, axis=0)

    def candidates_of(self, owners: Sequence[int]) -> np.ndarray:
        """As `candidates`, but every view of some pictures with all views that are near it."""
        descriptors, odd = _descriptors(self.coarse.astype(np.float32))
        every = [np.zeros((0, 3), np.int64)]
        mine = np.flatnonzero(np.isin(self.owner, owners))
        size = np.square(descriptors).sum(1) / 2
        for start in range(0, len(mine), _BLOCK):
            some = mine[start : start + _BLOCK]
            turned = descriptors[some][:, odd] @ descriptors[:, odd].T
            score = np.abs(turned) + descriptors[some][:, ~odd] @ descriptors[:, ~odd].T
            score -= size[some][:, None] + size
            row, column = np.nonzero(score > _LEAST_SCORE)
            two = self.owner[some[row]] != self.owner[column]
            row, column = row[two], column[two]
            pairs = np.stack([some[row], column, turned[row, column] < 0], 1)
            pairs[:, :2].sort(axis=1)
            every.append(pairs)
        return np.unique(np.concatenate(every), axis=0)

    def combinations(self, first: int, others: np.ndarray) -> np.ndarray:
        """As `candidates`, but every view of one picture with every view of the others."""
        mine = np.flatnonzero(self.owner == first)
        theirs = np.flatnonzero(np.isin(self.owner, others))
        combined = np.meshgrid(mine, theirs, (0, 1), indexing="ij")
        return np.stack([numbers.ravel() for numbers in combined], 1)

    def near(self, candidates: np.ndarray, limits: Limits) -> np.ndarray:
        """Pairs of pictures of candidates that are near duplicates, int [P, 2], each pair once."""
        found = [np.zeros((0, 2), np.int64)]
        for start in range(0, len(candidates), _CHUNK):
            some = candidates[start : start + _CHUNK]
            # Most are ruled out cheaply.
            for fits in (self._coarsely, self._placed, self._finely):
                some = some[fits(some, limits)] if len(some) else some
            found.append(self.owner[some[:, :2]])
        return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)

    def _coarsely(self, candidates: np.ndarray, limits: Limits) -> np.ndarray:
        """Whether a closer look is worth it, bool [C]."""
        fits = _unexplained(*self._small(candidates)) < _COARSE_DIFFERENCE * (
            limits.difference / PAIR.difference
        )
        widest = _ASPECTS + np.log(_SCALES[1] / _SCALES[0])
        result: np.ndarray = fits & (np.abs(self._stretched(candidates)) < widest)
        return result

    def _placed(self, candidates: np.ndarray, limits: Limits) -> np.ndarray:
        """Whether a closer look is worth it after coarse alignment, bool [C]."""
        one, other = self._small(candidates)
        place = _registered(one[:, 0], other[:, 0], _COARSE_STEPS)
        at = _positions(place, _COARSE)
        inside = [(axis >= -0.25) & (axis <= _COARSE - 0.75) for axis in at]
        left = one - _sampled(other, *at)
        result: np.ndarray = _relative(
            one, left, inside[0][:, :, None] & inside[1][:, None, :]
        ) < _PLACED_DIFFERENCE * (limits.difference / PAIR.difference)
        return result

    def _small(self, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both views of each candidate, scaled down: float32 [C, 3, 8, 8]."""
        one, other = (self.coarse[views].astype(np.float32) for views in candidates[:, :2].T)
        return one, _mirrored(other, candidates)

    def _finely(self, candidates: np.ndarray, limits: Limits) -> np.ndarray:
        """Whether they are near duplicates, bool [C]."""
        one, other = (
            _cut_out(_channels(self.sketches[self.position[views]]), self.box[views], _SIDE)
            for views in candidates[:, :2].T
        )
        other = _mirrored(other, candidates)
        place = _registered(one[:, 0], other[:, 0])
        stretched = np.log(place[:, 2] / place[:, 0])
        fits = np.abs(self._stretched(candidates) - stretched) < _ASPECTS
        fits[fits] = _alike(one[fits], other[fits], place[fits], limits)
        return fits

    def _stretched(self, candidates: np.ndarray) -> np.ndarray:
        """Differences of the logarithms of the aspects."""
        result: np.ndarray = self.aspect[candidates[:, 0]] - self.aspect[candidates[:, 1]]
        return result


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Finds descriptors that are near each other, in blocks of neighbouring descriptors.

    Attributes:
        order: int [V], the views, block by block.
        owner: int [V], their pictures.
        waves: float32 [V, O], the part that changes its sign in a mirror image.
        left: float32 [V, E + 2]. Its product with `right` is minus half the squared distance,
            without the contribution of the waves.
        right: float32 [V, E + 2].
        ends: int [B + 1], where blocks start and end.
        apart: bool [B, B], which pairs of blocks have nothing near each other.
    """

    order: np.ndarray
    owner: np.ndarray
    waves: np.ndarray
    left: np.ndarray
    right: np.ndarray
    ends: np.ndarray
    apart: np.ndarray

    @classmethod
    def of(cls, descriptors: np.ndarray, odd: np.ndarray, owner: np.ndarray) -> _Tiles:
        """Groups neighbouring descriptors into blocks; see `_descriptors`."""
        # The difference of the waves' norms is at most their distance, mirrored or not.
        strength = np.linalg.norm(descriptors[:, odd], axis=1, keepdims=True)
        places = np.concatenate([descriptors[:, ~odd], strength], 1)
        blocks = list(_blocks(places, np.arange(len(places))))
        low, high = (np.stack([f(places[block], 0) for block in blocks]) for f in (np.min, np.max))
        gaps = np.maximum(low[:, None] - high, low - high[:, None]).clip(0)
        order = np.concatenate(blocks)
        descriptors = descriptors[order]
        size = np.square(descriptors).sum(1, keepdims=True) / 2
        one = np.ones_like(size)
        return cls(
            order,
            owner[order],
            descriptors[:, odd],
            np.concatenate([descriptors[:, ~odd], one, -size], 1),
            np.concatenate([descriptors[:, ~odd], -size, one], 1),
            np.cumsum([0, *map(len, blocks)]),
            np.square(gaps).sum(2) > _RADIUS * _RADIUS,
        )

    def pairs(self) -> Iterator[np.ndarray]:
        """Pairs as in `_Views.candidates`: for each view, the nearest few after it in `order`."""
        for block, apart in enumerate(self.apart):
            others = block + np.flatnonzero(~apart[block:])
            tiles = [self._tile(block, other) for other in others]
            row, column, score, mirrored = map(np.concatenate, zip(*tiles, strict=True))
            ranked = np.lexsort((column, -score, row))
            row = row[ranked]
            nearest = np.arange(len(row)) - np.searchsorted(row, row) < _NEIGHBOURS
            row, ranked = row[nearest], ranked[nearest]
            yield np.stack([self.order[row], self.order[column[ranked]], mirrored[ranked]], 1)

    def _tile(self, block: int, other: int) -> tuple[np.ndarray, ...]:
        """Near pairs in two blocks: rows, columns, scores, and whether mirrored."""
        rows = slice(*self.ends[block : block + 2])
        columns = slice(*self.ends[other : other + 2])
        turned = self.waves[rows] @ self.waves[columns].T
        # A mirror image has the same even waves, and odd waves with the opposite sign.
        score = np.abs(turned)
        score += self.left[rows] @ self.right[columns].T
        if block == other:
            score[np.tril_indices(len(score))] = -np.inf
        row, column = _best(score)
        found = (
            row + rows.start,
            column + columns.start,
            score[row, column],
            turned[row, column] < 0,
        )
        two = self.owner[found[0]] != self.owner[found[1]]
        return tuple(each[two] for each in found)


def _best(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of near pairs: all, or if there are many, the best few of each row."""
    hits = np.flatnonzero(score > _LEAST_SCORE)
    # Some may be views of the same picture.
    most = _NEIGHBOURS + _MOST_VIEWS - 1
    if len(hits) > most * len(score):
        highest = np.argpartition(score, -most, axis=1)[:, -most:]
        hits = (np.arange(len(score))[:, None] * score.shape[1] + highest).ravel()
        hits = hits[score.ravel()[hits] > _LEAST_SCORE]
    row, column = np.divmod(hits, score.shape[1])
    return row, column


def _blocks(places: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of neighbours among the chosen: halves of halves, along the axis of most spread."""
    if len(chosen) <= _BLOCK:
        yield chosen
        return
    inside = places[chosen]
    axis = int(inside.var(0).argmax())
    sorted_ = chosen[np.argsort(inside[:, axis], kind="stable")]
    for half in (sorted_[: len(chosen) // 2], sorted_[len(chosen) // 2 :]):
        yield from _blocks(places, half)


def _mirrored(pixels: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Pixels [C, ...] of the candidates' second views, mirrored where needed."""
    flip = candidates[:, 2] == 1
    pixels[flip] = pixels[flip][..., ::-1]
    return pixels


def _channels(sketches: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 3] to float32 [N, 3, 32, 32]."""
    return np.ascontiguousarray(np.moveaxis(sketches, -1, 1), np.float32)


def _boxes(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields every picture whole, and the parts of pictures inside even margins.

    Args:
        pixels: float32 [N, 3, 32, 32].

    Yields:
        Which pictures, int [M]; the part of each, int [M, 2, 2]: first and last (exclusive) row and
        column; and the pixels of the whole pictures.
    """
    which = np.arange(len(pixels))
    inner = np.tile(np.array([[0, _SIDE], [0, _SIDE]]), (len(pixels), 1, 1))
    yield which, inner, pixels
    for _ in range(2):
        # Most pictures have no even margin, and a look at their edges is enough to see that.
        framed = _have_margin(pixels, inner)
        which, inner, pixels = which[framed], inner[framed], pixels[framed]
        found = _without_margin(pixels, inner)
        cut = (found != inner).any((1, 2))
        which, inner, pixels, found = which[cut], inner[cut], pixels[cut], found[cut]
        if not len(which):
            return
        yield which, found, pixels
        # Next to a margin that was cut off, a line may be half margin and half picture.
        inner = found + np.where(found != inner, np.array([1, -1]), 0)


def _have_margin(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Whether any line at the edge of a box has the colour of its first corner: bool [N]."""
    each = np.arange(len(pixels))
    top, left, bottom, right = box[:, 0, 0], box[:, 1, 0], box[:, 0, 1] - 1, box[:, 1, 1] - 1
    corner = pixels[each, :, top, left][:, :, None]
    index = np.arange(_SIDE)
    result = np.zeros(len(pixels), bool)
    for lines, axis in (
        (pixels[each, :, top], 1),
        (pixels[each, :, bottom], 1),
        (pixels[each, :, :, left], 0),
        (pixels[each, :, :, right], 0),
    ):
        outside = (index < box[:, axis, :1]) | (index >= box[:, axis, 1:])
        result |= ((np.abs(lines - corner).max(1) <= _EVEN) | outside).all(1)
    return result


def _without_margin(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Removes lines at the edges of a box that have the colour of its first corner.

    Args:
        pixels: float32 [N, 3, 32, 32].
        box: int [N, 2, 2].

    Returns:
        int [N, 2, 2]; a box that would become too small stays as it is.
    """
    corner = pixels[np.arange(len(pixels)), :, box[:, 0, 0], box[:, 1, 0]]
    other = np.abs(pixels - corner[:, :, None, None]).max(1) > _EVEN
    index = np.arange(_SIDE)
    inside = [(index >= box[:, axis, :1]) & (index < box[:, axis, 1:]) for axis in (0, 1)]
    other &= inside[0][:, :, None] & inside[1][:, None, :]
    lines = [other.any(2), other.any(1)]
    found = np.stack(
        [np.stack([line.argmax(1), _SIDE - line[:, ::-1].argmax(1)], 1) for line in lines], 1
    )
    enough = other.any((1, 2)) & (found[:, :, 1] - found[:, :, 0] >= _LEAST_LEFT).all(1)
    return np.where(enough[:, None, None], found, box)


def _inside(box: np.ndarray) -> np.ndarray:
    """Boxes without their rims: [N, 2, 2]."""
    rim = (box[:, :, 1:] - box[:, :, :1]) * _RIM_FRACTION
    result: np.ndarray = box + rim * np.array([1, -1])
    return result


def _cut_out(pixels: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Parts of pictures, scaled to one size: float32 [N, 3, side, side]."""
    if (box == (0, _SIDE)).all():
        return _shrunk(pixels, side)
    if (box == box[:1]).all():
        # One large product is faster than many small ones.
        down, across = (_spread(box[:1, axis], side)[0] for axis in (0, 1))
        narrow = pixels.reshape(-1, _SIDE) @ across.T
        return down @ narrow.reshape(*pixels.shape[:-1], side)
    down, across = (_spread(box[:, axis], side) for axis in (0, 1))
    result: np.ndarray = down[:, None] @ pixels @ across.swapaxes(1, 2)[:, None]
    return result


def _spread(ends: np.ndarray, side: int) -> np.ndarray:
    """Weights for the pixels along an axis: float32 [N, side, 32] for ends [N, 2]."""
    edges = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.linspace(0, 1, side + 1)
    index = np.arange(_SIDE)
    overlap = np.minimum(edges[:, 1:, None], index + 1) - np.maximum(edges[:, :-1, None], index)
    weights = np.maximum(overlap, 0)
    result: np.ndarray = (weights / weights.sum(2, keepdims=True)).astype(np.float32)
    return result


def _descriptors(coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low frequencies, relative to their norm; and mean colours, brightness last.

    Args:
        coarse: float32 [V, 3, 8, 8].

    Returns:
        float32 [V, D]; and bool [D], which of them change their sign in a mirror image.
    """
    waves = fft.dctn(coarse, axes=(2, 3), norm="ortho") / np.float32(_COARSE)
    chosen = [
        (channel, down, across)
        for channel, most in ((0, 3), (1, 1), (2, 1))
        for down in range(most + 1)
        for across in range(most + 1)
        if 0 < down + across <= most
    ]
    columns = np.stack([waves[:, c, down, across] for c, down, across in chosen], 1)
    size = np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), _LEAST_DEVIATION)
    descriptors = np.concatenate([columns / size, waves[:, ::-1, 0, 0] / _MEAN_SCALE], 1)
    odd = [across % 2 == 1 for _, _, across in chosen] + [False] * 3
    return descriptors, np.array(odd)


def _shrunk(values: np.ndarray, side: int) -> np.ndarray:
    """Means over squares of pixels: [..., side, side], from a power of 2 times that size."""
    while values.shape[-1] > side:
        rows = values[..., ::2, :] + values[..., 1::2, :]
        values = (rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25)
    return values


def _slopes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients from pixel to pixel, down and across: [..., H, W] each."""
    down, across = np.empty_like(values), np.empty_like(values)
    down[..., 1:-1, :] = (values[..., 2:, :] - values[..., :-2, :]) / 2
    down[..., 0, :] = values[..., 1, :] - values[..., 0, :]
    down[..., -1, :] = values[..., -1, :] - values[..., -2, :]
    across[..., 1:-1] = (values[..., 2:] - values[..., :-2]) / 2
    across[..., 0] = values[..., 1] - values[..., 0]
    across[..., -1] = values[..., -1] - values[..., -2]
    return down, across


def _centred(side: int) -> np.ndarray:
    """Positions of pixels from -1 to 1."""
    return (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1


def _moves(
    one: np.ndarray, other: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares equations for small shifts and scalings along both axes.

    Args:
        one: float32 [C, ..., H, H], the middle of a picture.
        other: The same of the other picture.
        side: Side of the whole picture in pixels.

    Returns:
        The normal matrix [C, 4, 4] and right-hand side [C, 4] for `one - other`, in the order scale
        and shift down, scale and shift across, in halves of a side; and the sum of squares [C].
    """
    rim = (side - one.shape[-1]) // 2
    down, across = _slopes((one + other) * np.float32(side / 4))
    at = _centred(side)[rim : side - rim]
    columns = (down * at[:, None], down, across * at, across)
    matrix = np.stack([c.reshape(len(one), -1) for c in columns], 1)
    difference = (one - other).reshape(len(one), -1)
    normal = matrix @ matrix.swapaxes(1, 2)
    # Without slopes, nothing moves.
    normal += (
        np.eye(4, dtype=np.float32) * (1e-3 * np.trace(normal, axis1=1, axis2=2) + 1)[:, None, None]
    )
    right = (matrix @ difference[..., None])[..., 0]
    return normal, right, np.einsum("ij,ij->i", difference, difference)


def _unexplained(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Difference that a small shift and scaling cannot explain, relative to the deviation.

    Args:
        one: float32 [C, 3, 8, 8].
        other: The same of the other picture.

    Returns:
        float32 [C].
    """
    normal, right, total = _moves(one, other, _COARSE)
    explained = np.einsum("ij,ij->i", right, np.linalg.solve(normal, right[..., None])[..., 0])
    left = np.sqrt(np.maximum(total - explained, 0) / (_COARSE * _COARSE))
    deviation = np.sqrt((one - one.mean((2, 3), keepdims=True)).var((2, 3)).sum(1))
    result: np.ndarray = left / np.maximum(deviation, _LEAST_DEVIATION)
    return result


def _registered(one: np.ndarray, other: np.ndarray, steps: Sequence[int] = _STEPS) -> np.ndarray:
    """Aligns one picture with another (Baker and Matthews 2004, Gauss-Newton, coarse to fine).

    Args:
        one: Luma, float32 [C, H, H].
        other: The same of the other picture.
        steps: Sides in pixels at which they are aligned.

    Returns:
        float32 [C, 4]: scale and shift down, scale and shift across, in halves of a side.
    """
    place = np.tile(np.array([1, 0, 1, 0], np.float32), (len(one), 1))
    for side in steps:
        seen, moved = _shrunk(one, side), _shrunk(other, side)[:, None]
        # The outermost pixels may be half a border.
        rim = 0 if side == _COARSE else 1
        inner = slice(rim, side - rim)
        moved = _sampled(moved, *_positions(place, side))[:, 0, inner, inner]
        normal, right, _ = _moves(seen[:, inner, inner], moved, side)
        place += np.linalg.solve(normal, right[..., None])[..., 0]
        place[:, ::2] = place[:, ::2].clip(*_SCALES)
        place[:, 1::2] = place[:, 1::2].clip(-_MOST_SHIFT, _MOST_SHIFT)
    return place


def _alike(one: np.ndarray, other: np.ndarray, place: np.ndarray, limits: Limits) -> np.ndarray:
    """Whether aligned pictures are within the limits.

    Args:
        one: float32 [C, 3, 32, 32].
        other: The same of the other picture.
        place: See `_registered`.
        limits: How much they may differ.

    Returns:
        bool [C].
    """
    moved = _moved(other, place)
    # The outermost pixels of either picture may be half a border.
    inside = [(at >= 0.99) & (at <= _SIDE - 1.99) for at in _positions(place)]
    both = inside[0][:, :, None] & inside[1][:, None, :]
    both[:, [0, -1]] = both[:, :, [0, -1]] = False
    left = one - moved
    whole = _shrunk(both.astype(np.float32), _SIDE // 2) == 1
    middle = whole.copy()
    middle[:, :_RIM] = middle[:, -_RIM:] = middle[:, :, :_RIM] = middle[:, :, -_RIM:] = False
    half, half_left = _shrunk(one, _SIDE // 2), _shrunk(left, _SIDE // 2)
    fits = both.mean((1, 2)) > _LEAST_OVERLAP
    fits &= _relative(half, half_left, whole) < limits.difference
    fits &= _relative(half, half_left, middle) < limits.inner
    fits[fits] = _colour_difference(one[fits], moved[fits], both[fits]) < limits.colour
    result: np.ndarray = fits
    return result


def _relative(values: np.ndarray, left: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Root mean square of what is left, relative to the values' deviation: float32 [C]."""
    weight = where.astype(np.float32) / np.maximum(where.sum((1, 2), keepdims=True), 1)
    weight = weight[:, None]
    mean = (values * weight).sum((2, 3), keepdims=True)
    deviation = np.sqrt((np.square(values - mean) * weight).sum((1, 2, 3)))
    result: np.ndarray = np.sqrt((np.square(left) * weight).sum((1, 2, 3)))
    return result / np.maximum(deviation, _LEAST_DEVIATION)


def _colour_difference(one: np.ndarray, moved: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The largest difference, in levels, of a channel over an area that is even in both pictures.

    Args:
        one: float32 [C, 3, 32, 32].
        moved: The other picture, aligned with it.
        where: bool [C, 32, 32], where both have pixels.

    Returns:
        float32 [C].
    """
    steepest = np.zeros(where.shape, np.float32)
    for picture in (one, moved):
        down, across = _slopes(picture)
        np.maximum(steepest, np.sqrt((down * down + across * across).max(1)), out=steepest)
    steepest = ndimage.maximum_filter(steepest, (1, 5, 5))
    weight = where / (1 + np.square(steepest / _EDGE))
    left = (one - moved) * weight[:, None]
    weights = _shrunk(weight, _COARSE)
    areas = np.abs(_shrunk(left, _COARSE)) / np.maximum(weights, 1e-3)[:, None]
    # Too few even pixels say nothing about their area.
    areas = np.where((weights > 0.3)[:, None], areas, 0).max((1, 2, 3))
    all_of_it = np.abs(left.sum((2, 3))) / np.maximum(weight.sum((1, 2)), 1e-3)[:, None]
    result: np.ndarray = np.maximum(areas, all_of_it.max(1))
    return result


def _positions(place: np.ndarray, side: int = _SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Positions of one picture's pixels in the other, in pixels: rows and columns, [C, side]."""
    at = _centred(side)
    return tuple(  # type: ignore[return-value]
        (place[:, axis : axis + 1] * at + place[:, axis + 1 : axis + 2] + 1) * (side / 2) - 0.5
        for axis in (0, 2)
    )


def _moved(pixels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A picture resampled to align with the other: [C, 3, 32, 32]."""
    return _sampled(pixels, *_positions(place))


def _sampled(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values between pixels, bilinear: [N, channels, side, side] at [N, side] and [N, side]."""
    side = pixels.shape[-1]
    index = np.arange(side, dtype=np.float32)
    down, across = (
        np.maximum(0, 1 - np.abs(at.clip(0, side - 1)[..., None] - index)) for at in (rows, columns)
    )
    result: np.ndarray = down[:, None] @ pixels @ across.swapaxes(1, 2)[:, None]
    return result
