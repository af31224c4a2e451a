"""Line plots as inline SVG: no script, no asset from elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 28
COLORS = ("#1f6f8b", "#c2571a", "#5b7f2b", "#7a4b94")
TICKS, MAX_LABELS = 4, 11
APART = 4.0
"""Between the lines of a plot, across."""
Scale = Callable[[float], float]
"""A value's place in the picture."""


@dataclass(frozen=True)
class Point:
    x: float
    """At least 0."""
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[Point]
    dashed: bool = False
    """True for the line of the baseline."""


def plot(
    title: str,
    lines: Sequence[Line],
    labels: Sequence[tuple[float, str]],
    *,
    guide: float | None = None,
) -> str:
    """A figure with a legend; `labels` are those of the x axis, which begins at 0, and `guide` is
    a level to compare with. Empty where nothing is known. All texts are escaped here."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    points = [p for line in drawn for p in line.points]
    low, high = _range(points, guide)
    last = max(x for x, _ in labels) or 1.0

    def x(value: float) -> float:
        return LEFT + value / last * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(low, high, labels, x, y)]
    if guide is not None:
        parts.append(_rule(x(0), y(guide), x(last), y(guide), "guide"))
    for number, line in enumerate(drawn):
        # Apart, so that the intervals of several lines can be told from one another.
        shift = (number - (len(drawn) - 1) / 2) * APART

        def beside(value: float, shift: float = shift) -> float:
            return x(value) + shift

        parts.append(_line(line, COLORS[number % len(COLORS)], beside, y))
    legend = "".join(
        f'<span><i style="border-color:{COLORS[number % len(COLORS)]};'
        f'border-top-style:{"dashed" if line.dashed else "solid"}"></i>{escape(line.name)}</span>'
        for number, line in enumerate(drawn)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'
    )


def _range(points: Sequence[Point], guide: float | None) -> tuple[float, float]:
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    if guide is not None:
        values.append(guide)
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    below, above = low - margin, high + margin
    # Shares, of which there is none beyond 0 and 1.
    return (max(below, 0.0), min(above, 1.0)) if 0 <= low < high <= 1 else (below, above)


def _axes(low: float, high: float, labels: Sequence[tuple[float, str]], x: Scale, y: Scale) -> str:
    parts = []
    for i in range(TICKS + 1):
        value = low + (high - low) * i / TICKS
        parts.append(_rule(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(_text(LEFT - 6, y(value) + 4, "end", f"{value:.3g}"))
    step = math.ceil(len(labels) / MAX_LABELS)
    parts += [_text(x(at), HEIGHT - 8, "middle", label) for at, label in labels[::step]]
    return "".join(parts)


def _line(line: Line, color: str, x: Scale, y: Scale) -> str:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    corners = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in line.points)
    parts = [f'<polyline points="{corners}" fill="none" stroke="{color}" stroke-width="2"{dash}/>']
    for p in line.points:
        if p.low is not None and p.high is not None:
            parts.append(
                f'<line x1="{x(p.x):.1f}" y1="{y(p.low):.1f}" x2="{x(p.x):.1f}" '
                f'y2="{y(p.high):.1f}" stroke="{color}" stroke-width="1.5" opacity="0.6"/>'
            )
        parts.append(
            f'<circle cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="3.5" fill="{color}">'
            f"<title>{escape(line.name)}: {p.y:.4g}</title></circle>"
        )
    return "".join(parts)


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
