"""Plots are well-formed and stay inside their picture, whatever they are given."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.report.plot import HEIGHT, WIDTH, Line, Point, plot

HOSTILE = "</svg><script>&\"'"
values_st = st.floats(-1e9, 1e9)
points_st = st.lists(
    st.builds(Point, st.integers(0, 30).map(float), values_st)
    | values_st.flatmap(
        lambda y: st.builds(
            Point, st.integers(0, 30).map(float), st.just(y), st.just(y - 1), st.just(y + 2)
        )
    ),
    max_size=6,
)
lines_st = st.lists(st.builds(Line, st.just(HOSTILE), points_st, st.booleans()), max_size=5)


@given(lines_st, st.none() | values_st, st.integers(0, 30))
def test_it_stays_inside(lines: list[Line], guide: float | None, more: int) -> None:
    last = max([more, *(int(p.x) for line in lines for p in line.points)])
    labels = [(float(n), str(n)) for n in range(last + 1)]
    html = plot(HOSTILE, lines, labels, guide=guide)
    if not any(line.points for line in lines):
        assert html == ""
        return
    found = ElementTree.fromstring(html)
    assert "script" not in {element.tag for element in found.iter()}
    caption = found.find("figcaption")
    assert caption is not None
    assert caption.text == HOSTILE
    for element in found.iter():
        for across, down in (("x1", "y1"), ("x2", "y2"), ("cx", "cy"), ("x", "y")):
            if across in element.attrib:
                assert 0 <= float(element.attrib[across]) <= WIDTH
                assert 0 <= float(element.attrib[down]) <= HEIGHT


def test_the_higher_value_is_drawn_higher() -> None:
    figure = ElementTree.fromstring(
        plot("t", [Line("a", [Point(0, 1.0), Point(1, 2.0)])], [(0, "seed"), (1, "1")])
    )
    low, high = figure.iter("circle")
    assert float(low.attrib["cy"]) > float(high.attrib["cy"])
    assert float(low.attrib["cx"]) < float(high.attrib["cx"])
