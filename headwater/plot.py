"""A picture of a search, as SVG without a library: values by trial, and values by each parameter."""

import functools
from collections.abc import Callable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from model_core.strategy.tuning import Parameter, Trial

__all__ = ["trials_plot"]

_WIDTH: Final = 300
_HEIGHT: Final = 200
_MARGIN: Final = 40
_COLUMNS: Final = 3
_STYLE: Final = (
    "circle{fill:#1b6ca8;fill-opacity:.6}polyline{fill:none;stroke:#c0392b;stroke-width:1.5}"
    "rect{fill:none;stroke:#999}text{font:11px sans-serif}"
)


def trials_plot(space: Sequence[Parameter], trials: Sequence[Trial]) -> str:
    """The SVG; trials without a value are left out, and the best so far is a line in the first picture."""
    known = [(trial, trial.value) for trial in trials if trial.value is not None]
    values = [value for _, value in known]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = high - low or 1.0
    last = max((trial.number for trial, _ in known), default=0) or 1

    def dots(place: Callable[[Trial], float]) -> list[str]:
        return [
            f'<circle cx="{_x(place(trial)):.1f}" cy="{_y((value - low) / span):.1f}" r="3"/>' for trial, value in known
        ]

    best, line = low, []
    for trial, value in known:
        best = max(best, value)
        line.append(f"{_x(trial.number / last):.1f},{_y((best - low) / span):.1f}")
    panels = [
        ("trial", "0", str(last), [*dots(lambda trial: trial.number / last), f'<polyline points="{" ".join(line)}"/>'])
    ]
    panels += [
        (
            one.name + (" (log)" if one.log else ""),
            f"{one.low:g}",
            f"{one.high:g}",
            dots(functools.partial(_place, one)),
        )
        for one in space
    ]
    drawn = [_panel(number, *panel, f"{low:.4g}", f"{high:.4g}") for number, panel in enumerate(panels)]
    width, height = _COLUMNS * _WIDTH, -(-len(panels) // _COLUMNS) * _HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f"<style>{_STYLE}</style>",
            *drawn,
            "</svg>",
            "",
        ]
    )


def _place(one: Parameter, trial: Trial) -> float:
    return one.to_unit(trial.parameters[one.name])


def _x(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 1.5 * _MARGIN)


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 1.5 * _MARGIN)


def _panel(number: int, title: str, left: str, right: str, marks: list[str], low: str, high: str) -> str:
    row, column = divmod(number, _COLUMNS)
    bottom, width, height = _HEIGHT - _MARGIN, _WIDTH - 1.5 * _MARGIN, _HEIGHT - 1.5 * _MARGIN
    return "\n".join(
        [
            f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">',
            f'<rect x="{_MARGIN}" y="{_MARGIN / 2}" width="{width}" height="{height}"/>',
            *marks,
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(title)}</text>',
            f'<text x="{_MARGIN}" y="{bottom + 14}">{escape(left)}</text>',
            f'<text x="{_WIDTH - _MARGIN / 2}" y="{bottom + 14}" text-anchor="end">{escape(right)}</text>',
            f'<text x="{_MARGIN - 3}" y="{bottom}" text-anchor="end">{low}</text>',
            f'<text x="{_MARGIN - 3}" y="{_MARGIN / 2 + 9}" text-anchor="end">{high}</text>',
            "</g>",
        ]
    )
