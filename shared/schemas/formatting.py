"""Figures of a report as text, the same on a terminal and on a page."""

from collections.abc import Mapping
from typing import Any


def interval(figure: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`0.521 [0.480, 0.563]`."""
    if not figure:
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (f"{figure[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def reasons(found: Mapping[str, int] | None) -> str:
    """`15 tie, 2 same output`."""
    return ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in (found or {}).items()) or "none"
