"""Figures as text, the same on a terminal and on a page."""

from collections.abc import Mapping
from typing import Any


def interval(figure: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`0.521 [0.480, 0.563]`, or `-` if the figure is not known."""
    if not figure:
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (f"{figure[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def reasons(counts: Mapping[str, int] | None) -> str:
    """`15 tie, 2 same output`."""
    return ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in (counts or {}).items()) or "none"


def duration(seconds: float) -> str:
    """`2 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
