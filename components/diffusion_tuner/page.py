"""The page about a search: all trials, what they cost, and which was chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from components.pages.page import render
from components.pages.svg import chart, line, text, text_width
from trainer.training.evaluations import paired_interval
from trainer.tuning.schedule import total_steps
from trainer.tuning.search import Search, TrialRecord, in_words

PAGE_NAME = "tuning.html"

_WIDTH, _HEIGHT = 400.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 24.0
_DOT, _CHOSEN_DOT = 3.5, 6.0
_RATE = "learning_rate"


@dataclasses.dataclass(frozen=True)
class _Row:
    """A trial as the table of the page shows it.

    Attributes:
        record: The trial.
        steps: Steps that it trained itself.
        interval: The 95 % interval of its loss over pictures.
        difference: Its loss minus the chosen trial's, on the same pictures and noise, and the
            interval of the difference. `None` if there is no loss, or it is the chosen trial.
    """

    record: TrialRecord
    steps: int
    interval: tuple[float, float] | None
    difference: tuple[float, float, float] | None


def tuning_page(search: Search) -> str:
    """The page as HTML in one file."""
    by_id = {record.trial: record for record in search.records}
    rows = [_row(record, by_id, search.chosen) for record in search.records]
    chosen = search.chosen
    return render(
        __package__,
        "tuning.html",
        search=search,
        rows=sorted(rows, key=lambda row: (-row.record.round, row.record.result.loss)),
        found=in_words(chosen.hyperparameters),
        names=list(chosen.hyperparameters),
        curve=_curve(search) if _RATE in chosen.hyperparameters else None,
        steps=total_steps(search.rungs),
        seconds=sum(record.result.seconds for record in search.records),
        before=[0, *(rung.steps for rung in search.rungs)],
    )


def _row(record: TrialRecord, by_id: dict[str, TrialRecord], chosen: TrialRecord) -> _Row:
    before = by_id[record.continues].steps if record.continues is not None else 0
    losses = record.result.losses
    if not math.isfinite(record.result.loss):
        return _Row(record, record.steps - before, None, None)
    difference = None
    if record is not chosen:
        differences = np.subtract(losses, chosen.result.losses)
        difference = (float(np.mean(differences)), *paired_interval(differences))
    return _Row(record, record.steps - before, paired_interval(np.array(losses)), difference)


def _curve(search: Search) -> Markup:
    """Losses over learning rates, with later rounds darker."""
    shown = [record for record in search.records if math.isfinite(record.result.loss)]
    rates = [math.log10(record.hyperparameters[_RATE]) for record in shown]
    losses = [record.result.loss for record in shown]
    low, high = _widened(rates)
    lowest, highest = _widened(losses)

    def x_of(rate: float) -> float:
        return _LEFT + (rate - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(loss: float) -> float:
        return _TOP + (highest - loss) / (highest - lowest) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        line("base", _LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
        *(
            text("axis", x_of(rate), _HEIGHT - 6, f"{10**rate:.2g}", _WIDTH)
            for rate in _labelled(low, high)
        ),
        *(
            text("axis", text_width(f"{loss:.4f}") / 2, y_of(loss) + 4, f"{loss:.4f}", _WIDTH)
            for loss in (min(losses), max(losses))
        ),
    ]
    for record, rate in zip(shown, rates, strict=True):
        share = (record.round + 1) / len(search.rungs)
        parts.append(
            Markup(
                '<circle class="bar" cx="{:.1f}" cy="{:.1f}" r="{}" opacity="{:.2f}">'
                "<title>trial {}, {} steps: {:.4f}</title></circle>"
            ).format(
                x_of(rate),
                y_of(record.result.loss),
                _CHOSEN_DOT if record.chosen else _DOT,
                share,
                record.trial,
                record.steps,
                record.result.loss,
            )
        )
    label = "Held-out loss over the learning rate, one dot per trial"
    return chart(_WIDTH, _HEIGHT, label, parts)


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest value, with a little room on both sides."""
    room = 0.04 * (max(values) - min(values)) or 0.5
    return min(values) - room, max(values) + room


def _labelled(low: float, high: float) -> list[float]:
    """Whole powers of ten between two logarithms, or both ends if there is at most one."""
    powers = [float(power) for power in range(math.ceil(low), math.floor(high) + 1)]
    return powers if len(powers) > 1 else [low, high]
