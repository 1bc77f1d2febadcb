"""What could break only in a browser: the policy, the fragment, dialogs, the keyboard, narrow screens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.records import path_of
from leaderboard.page import COLUMNS
from leaderboard.render import render
from tests.leaderboard.chromium import launch, needed
from tests.leaderboard.synthetic import grid, metrics, record, store, victim_json

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra [test] is not installed")
pytestmark = needed

EVIL = '"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
WORDS = (
    "I say </script><script>window.pwned=2</script>"  # as a docstring would, in a message or log
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every status, two data sets, clean twins, and a plugin that means harm."""
    root = tmp_path_factory.mktemp("browser")
    names = ("identity", "ft", "clp", "ibau", "bcu", "my-prune")
    store(root, grid(names, ("0", "100", "2500"), seeds=2, failures=0.15))
    error = {"type": "RuntimeError", "message": WORDS}
    hostile = {"needs": "images", "origin": f"file:{EVIL}.py", "paper": f"javascript:{EVIL}"}
    bad = record(EVIL, status="error", error=error, params={EVIL: EVIL}, **hostile)
    store(root, [bad, record(EVIL, seed=1, after=metrics(0.8, 0.3, 0.5), **hostile)])
    path_of(root, bad).with_suffix(".log").write_text(WORDS)
    store(root, [record("crash", seed=s, status="timeout", error=error) for s in range(2)])
    victim_json(root, "sig", reasons=[WORDS])
    return render(root, release="2026-12-01").html.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as library:
        started = launch(library)
        yield started
        started.close()


class Visit:
    """Opens the page, and remembers what it said and asked for."""

    def __init__(self, browser: "sync_api.Browser", address: str) -> None:
        self.browser, self.address = browser, address
        self.said: list[str] = []
        self.requests: list[str] = []
        self.contexts: list[sync_api.BrowserContext] = []

    def __call__(self, fragment: str = "", width: int = 1280, **options: object) -> "sync_api.Page":
        size = {"width": width, "height": 900}
        self.contexts.append(self.browser.new_context(viewport=size, **options))
        page = self.contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(self.address + fragment)
        return page


@pytest.fixture
def visit(browser: "sync_api.Browser", address: str) -> Iterator[Visit]:
    """Afterwards: not one word on the console, not one request but for the page itself."""
    visits = Visit(browser, address)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.said == []
    assert {url.split("#")[0] for url in visits.requests} == {address}


def names(page: "sync_api.Page", board: str = "2500") -> list[str]:
    """The defenses of a board as they are shown."""
    rows = page.locator(f"#board-{board} tbody tr:not([hidden]) > th")
    return [text.split("\n")[0].strip() for text in rows.all_text_contents()]


def column(page: "sync_api.Page", key: str) -> list[float | None]:
    """All digits of a column of the board of 2,500 images; None for a row without a value."""
    found = page.evaluate(
        """(key) => {
          const table = document.querySelector("#board-2500");
          const index = table.querySelector(`th[data-key="${key}"]`).cellIndex;
          return [...table.tBodies[0].rows].map((row) =>
            "last" in row.dataset ? null : row.cells[index]?.dataset.v ?? null);
        }""",
        key,
    )
    return [None if value is None else float(value) for value in found]


def test_sorting_both_ways_leaves_failed_rows_last(visit: Visit) -> None:
    page = visit()
    head = page.locator('#board-2500 th[data-key="asr"]')
    for direction, turned in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = column(page, "asr")
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=turned)
        assert len(set(known)) > 3
        assert values[len(known) :] == [None] * (len(values) - len(known))
        assert "crash" in names(page)[len(known) :]
        assert f"Sorted by ASR, {direction}" in page.locator("#announce").inner_text()
    assert page.evaluate("location.hash") == "#sort=board-2500%3Ad%3Aasr"


def test_search_counts_and_changes_no_rank(visit: Visit) -> None:
    page = visit()
    everyone, ranks = names(page), column(page, "rank")
    page.get_by_label("Search").fill("IBAU")
    assert names(page) == ["ibau"]
    assert page.locator("#count").inner_text() == f"1 of {len(everyone)} defenses"
    assert page.locator("#count").evaluate("(e) => e.tagName") == "OUTPUT"  # it is read aloud
    assert column(page, "rank") == ranks
    page.get_by_role("button", name="Reset").click()
    assert names(page) == everyone
    assert page.evaluate("location.hash") == ""


def test_needs_and_kind_narrow_the_rows(visit: Visit) -> None:
    page = visit("#kind=control")
    assert set(names(page)) == {"identity", "ft"}
    page.get_by_label("Needs").select_option("labels")
    assert names(page) == ["ft"]


def test_a_filter_by_setting_adds_columns_and_leaves_the_others(visit: Visit) -> None:
    page = visit()
    before = [column(page, key) for key in ("rank", "score", "asr")]
    page.get_by_label("Data set").select_option("gtsrb")
    page.get_by_role("combobox", name="Attack").select_option("wanet")
    within = page.locator('#board-2500 tr:has(th:text-is("ibau")) td.within').first
    within.wait_for()
    assert [column(page, key) for key in ("rank", "score", "asr")] == before
    assert (
        "only the columns “within filter” cover the 1 that are left"
        in page.locator("#scope").inner_text()
    )
    # One setting is left: its mean is what the table of settings prints.
    page.evaluate("document.querySelector('#settings-2500').open = true")
    grids = page.locator("#settings-2500 .grid:not([hidden]) table.matrix")
    assert grids.count() == 1
    printed = grids.locator('tr:has(th:text-is("ibau")) td:not([hidden])').last.inner_text()
    assert within.inner_text().split()[0] == printed.split()[0]


def test_columns_come_and_go_and_the_link_says_so(visit: Visit) -> None:
    page = visit()
    der = page.locator('#board-2500 th[data-key="der"]')
    ra = page.locator('#board-2500 th[data-key="ra"]')
    assert (der.is_visible(), ra.is_visible()) == (False, True)
    page.get_by_role("button", name="Columns").click()
    page.get_by_role("checkbox", name="DER").check()
    page.get_by_role("checkbox", name="RA", exact=True).uncheck()
    page.keyboard.press("Escape")
    assert not page.locator("#columns").is_visible()
    assert page.evaluate("location.hash") == "#show=der&hide=ra"
    again = visit("#show=der&hide=ra")
    for shown in (page, again):
        assert shown.locator('#board-2500 th[data-key="der"]').is_visible()
        assert not shown.locator('#board-2500 th[data-key="ra"]').is_visible()
        row = shown.locator("#board-2500 tbody tr:not(:has(td[colspan]))").first
        visible = shown.locator("#board-2500 thead th:visible").count()
        assert row.locator("> :visible").count() == visible


def test_a_link_to_a_view_restores_it(visit: Visit) -> None:
    page = visit("#sort=board-2500:a:acc&q=b&hide=ra&at=budget-2500")
    values = [v for v in column(page, "acc") if v is not None]
    assert values == sorted(values)
    assert page.get_by_label("Search").input_value() == "b"
    assert all("b" in name for name in names(page))
    top = page.locator("#budget-2500").evaluate("(e) => e.getBoundingClientRect().top")
    assert 0 <= top < 120
    page.evaluate("location.hash = '#q=clp'")
    page.wait_for_function("document.querySelector('[name=q]').value === 'clp'")
    assert names(page) == ["clp"]
    assert page.locator("#board-2500 [aria-sort]").count() == 0


def test_links_on_the_page_keep_the_filters(visit: Visit) -> None:
    page = visit("#q=ibau")
    page.get_by_role("link", name="How to read this page").click()
    assert page.evaluate("location.hash") == "#q=ibau&at=how"
    assert names(page) == ["ibau"]


def test_from_a_number_to_settings_seeds_reason_log_and_command(visit: Visit) -> None:
    page = visit()
    page.locator('#board-2500 tr:has(th:text-is("ibau")) button').first.click()
    dialog = page.locator("#drill")
    dialog.get_by_text("clean twins included").wait_for()
    assert dialog.locator("h2").inner_text() == "ibau · budget 2500"
    assert page.evaluate("location.hash") == "#cell=ibau&budget=2500"
    dialog.get_by_role("button", name=re.compile("gtsrb .* wanet")).click()
    assert dialog.locator("thead th").all_inner_texts()[4:7] == ["ASR x1", "ASR x2", "ASR x3"]
    assert dialog.locator("tbody tr").count() == 2
    assert dialog.locator(".command code").count() == 2
    repeats = dialog.locator(".command code").first.inner_text().splitlines()
    keys = [key.rstrip("…") for key in dialog.locator("tbody .path").all_inner_texts()]
    assert repeats == [f"bench repro {key}" for key in keys]
    command = dialog.locator(".command code").last.inner_text()
    assert command.startswith("bench run --root again --profile PROFILE --dataset gtsrb")
    attack = "--attack 'wanet[label_rule=all-to-all, poison_rate=0.1]'"
    assert command.endswith(f"{attack} --defense ibau --budget 2500 --seeds 0,1")
    link = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("location.hash") == ""
    again = visit(link)
    again.locator("#drill .command").last.wait_for()
    assert again.locator("#drill .command code").last.inner_text() == command


def test_every_number_of_a_data_free_row_opens_where_it_ran(visit: Visit) -> None:
    page = visit()
    page.locator('#ladder tr:has(th:text-is("clp")) td').nth(2).click()
    page.locator("#drill").get_by_text("clean twins included").wait_for()
    assert page.locator("#drill h2").inner_text() == "clp · budget 0"


def test_two_defenses_side_by_side(visit: Visit, address: str) -> None:
    page = visit("#one=ibau&other=ft")
    lines = page.locator("#compare-body tbody tr")
    lines.first.wait_for()
    data = json.loads(Path(address.removeprefix("file://")).with_suffix(".json").read_text())
    board = next(b for b in data["boards"] if b["budget"] == "2500")
    means = {row["defense"]: row["figures"]["score"]["mean"] for row in board["rows"]}
    shown = page.locator('#compare-body tr:has(th:text-is("Budget 2500")) td').first.inner_text()
    assert float(shown.replace("−", "-")) == pytest.approx(means["ibau"] - means["ft"], abs=0.051)
    assert "too few settings for a test" in lines.last.inner_text()
    page.get_by_text("Budget 2500, by setting").click()
    assert page.locator("#compare-body details[open] tbody tr").count() == 4


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the tables"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    score = page.locator("#board-2500 tbody button").first
    score.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    ring = "(e) => getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth"
    assert score.evaluate(ring) == "solid2px"
    page.keyboard.press("Enter")
    page.locator("#drill").get_by_text("clean twins included").wait_for()
    assert page.evaluate("document.activeElement.closest('dialog')?.id") == "drill"
    page.keyboard.press("Escape")
    assert score.evaluate("(e) => e === document.activeElement")


def test_hostile_texts_stay_texts_in_every_corner(visit: Visit) -> None:
    page = visit()
    assert EVIL in names(page)
    page.locator("#board-2500 tbody tr", has_text="onerror").locator("button").first.click()
    page.locator("#drill tbody button").first.click()
    dialog = page.locator("#drill")
    dialog.get_by_text("Run it again").wait_for()
    assert dialog.locator("h2").inner_text() == f"{EVIL} · budget 2500"
    assert dialog.locator("details pre").inner_text() == WORDS
    assert f"RuntimeError: {WORDS}" in dialog.locator("details p").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare two").click()
    page.locator("#compare-body table, #compare-body p").first.wait_for()
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0


def test_the_policy_is_in_force(visit: Visit) -> None:
    page = visit()
    blocked = page.evaluate(
        """async () => {
          const found = [];
          addEventListener("securitypolicyviolation", (e) => found.push(e.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.pwned = 3";
          document.body.append(script);
          const image = new Image();
          image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
          document.body.append(image);
          document.body.insertAdjacentHTML("beforeend", '<p id="styled" style="color: red">x</p>');
          await new Promise((done) => setTimeout(done, 200));
          return [found.sort(), window.pwned ?? null];
        }"""
    )
    assert blocked == [["img-src", "script-src-elem", "style-src-attr"], None]
    assert len(visit.said) == 3  # the browser's own words about the three
    visit.said.clear()
    visit.requests[:] = [url for url in visit.requests if not url.startswith("data:")]


def test_a_table_is_saved_as_it_is_shown(visit: Visit) -> None:
    page = visit("#q=ibau&hide=ra")
    with page.expect_download() as download:
        page.locator("#budget-2500 .save").click()
    text = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "board-2500.csv"
    head, *rows = text.splitlines()
    assert "Score" in head.split(",")
    assert "RA" not in head.split(",")
    assert len(rows) == 1
    assert rows[0].startswith("ibau")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_legible(visit: Visit, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (ground, ink)]
    assert abs(lightness[0] - lightness[1]) > 0.7
    assert (lightness[0] > 0.5) == (scheme == "light")
    label = page.locator("#chart-tradeoff text").last.evaluate("(e) => getComputedStyle(e).fill")
    drawn = sum(map(int, re.findall(r"\d+", label)[:3])) / 765
    assert abs(drawn - lightness[0]) > 0.25


def test_print_and_reduced_motion(visit: Visit) -> None:
    page = visit(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.locator("#board-2500").is_visible()


def test_a_phone_scrolls_tables_not_the_page(visit: Visit) -> None:
    page = visit(width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    scroller = page.locator("#budget-2500 .scroll").first
    scroller.evaluate("(e) => { e.scrollLeft = 300; }")
    first = page.locator("#board-2500 tbody th").first
    assert first.evaluate("(e) => e.getBoundingClientRect().left") < 30


def test_without_javascript_everything_stands_there(visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    assert not page.locator("#controls").is_visible()
    assert page.locator("dialog:visible").count() == 0
    assert page.locator("#board-2500 thead th:visible").count() == COLUMNS
    assert page.locator("#chart-tradeoff svg").is_visible()
    page.locator("#settings-2500 > summary").click()
    assert page.locator("#settings-2500 table").first.is_visible()
