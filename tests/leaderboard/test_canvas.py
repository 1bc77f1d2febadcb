"""What could break: charts that style themselves against the policy, or that names can leave."""

import xml.etree.ElementTree as ET

import pytest

from leaderboard import canvas, chart, heat, lines
from leaderboard.canvas import DARK, LIGHT, PAGE, Plot, Size, style_sheet, to_pdf, to_svg

EVIL = 'a\x00b$x$</text><script>alert(1)</script>&"'
POINTS = [
    chart.Point("bcu", False, 2.0, 90.0, False),
    chart.Point(EVIL, False, 60.0, 85.0, False, dominated=True),
    chart.Point("scramble", True, 10.0, 11.0, True),
]
LINES = lines.Chart(
    (
        lines.Panel(
            "$t$", (lines.Line(EVIL, False, (0, 1), (5, 9), (4, 8), (6, 10)),), ("x1", "x4"), "x"
        ),
        lines.Panel("", (lines.Line("ft", True, (0, 1), (50, 90)),), ("x1", "x2"), "x"),
    ),
    "ASR",
)
HEAT = heat.Heat((EVIL, "ft"), ("wanet",), ((12.0,), (None,)), (("12",), ("",)), 100.0)
CHARTS: dict[str, tuple[Plot, Size]] = {
    "tradeoff": (chart.tradeoff(POINTS), chart.SIZE),
    "lines": (lines.plot(LINES), LINES.size),
    "heat": (heat.plot(HEAT), HEAT.size),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {name: to_svg(plot, size, name, f"alt {EVIL}") for name, (plot, size) in CHARTS.items()}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_twice(name: str, drawn: dict[str, str]) -> None:
    assert to_svg(*CHARTS[name], name, f"alt {EVIL}") == drawn[name]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_brings_no_style_no_script_and_no_address(name: str, drawn: dict[str, str]) -> None:
    svg = drawn[name]
    root = ET.fromstring(svg)  # and it is well-formed, whatever a defense is called
    assert {e.tag for e in root.iter()} <= {"svg", "g", "defs", "path", "use", "text", "tspan"}
    attributes = {key for e in root.iter() for key in e.attrib}
    assert not [a for a in attributes if a == "style" or a.startswith("on") or "}" in a]
    assert "http" not in svg
    assert "url(" not in svg
    uses = {e.attrib["href"] for e in root.iter("use")}
    assert uses <= {f"#{e.attrib['id']}" for e in root.iter() if "id" in e.attrib}
    assert "a\ufffdb$x$</text" in "".join(root.itertext())
    assert root.get("aria-label") == f"alt {EVIL}".replace("\x00", "\ufffd")


@pytest.mark.parametrize("name", CHARTS)
def test_every_colour_is_a_variable_of_the_style_sheet(name: str, drawn: dict[str, str]) -> None:
    sheet = style_sheet()
    colours = {
        value
        for e in ET.fromstring(drawn[name]).iter()
        for key, value in e.attrib.items()
        if key in ("fill", "stroke")
    }
    assert colours - {"none"}
    for colour in colours - {"none"}:
        assert colour.startswith("var(--chart-")
        assert sheet.count(f"{colour[4:-1]}:") == 2  # light and dark


def test_the_three_themes_speak_of_the_same_colours() -> None:
    names = [[name for name, _ in theme.variables()] for theme in (LIGHT, DARK, PAGE)]
    assert names[0] == names[1] == names[2]
    assert len({colour for _, colour in PAGE.variables()}) == len(names[0])


def test_two_charts_share_no_identifier(drawn: dict[str, str]) -> None:
    ids = [
        e.attrib["id"]
        for svg in drawn.values()
        for e in ET.fromstring(svg).iter()
        if "id" in e.attrib
    ]
    assert ids
    assert len(ids) == len(set(ids))


def test_lines_of_all_panels_share_their_styles_and_controls_come_last() -> None:
    assert LINES.names == [(EVIL, False), ("ft", True)]


def test_paths_keep_their_shape_when_they_are_shortened() -> None:
    assert canvas._path("M 1.23456 2 \nL -0.001 3.0 \nz\n") == "M1.23 2L0 3z"
    assert canvas._short("translate(1.500000 2.25)") == "translate(1.5 2.25)"


def test_pdf_is_the_same_twice() -> None:
    plot, size = CHARTS["heat"]
    pdf = to_pdf(plot, size)
    assert pdf.startswith(b"%PDF-")
    assert pdf == to_pdf(plot, size)
