"""The page of the full paper grid: how large it is, how long it takes to make, and to use.

Synthetic records of the paper profile's shape: 62 settings, 14 seeds, six budgets, clean twins.
Run alone for figures: ``pytest tests/benchmarks/test_leaderboard_page.py -rP``.
"""

import time

import pytest

from leaderboard import render, report
from tests.leaderboard.chromium import launch, needed
from tests.leaderboard.synthetic import PAPER, grid

DEFENSES = ("identity", "scramble", "ft", "clp", "ibau", "ibau[mode=paper]", "bcu")
LARGEST = 1_500_000  # bytes
SLOWEST = {"first paint": 3000, "unpack": 2000}  # milliseconds
SLOWEST_CLICK = 1000
# Each step until the next frame has been drawn, as a reader waits for it.
STEPS = """async () => {
  const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const find = (selector) => document.querySelector(selector);
  const found = { "first paint": performance.getEntriesByName("first-contentful-paint")[0].startTime };
  const time = async (name, act) => {
    const start = performance.now();
    await act();
    await drawn();
    found[name] = performance.now() - start;
  };
  const enter = (name, value) => () => {
    find(`[name=${name}]`).value = value;
    find(`[name=${name}]`).dispatchEvent(new Event("input", { bubbles: true }));
  };
  await time("sort", () => find("#board-2500 th[data-key=asr] button").click());
  await time("search", enter("q", "ibau"));
  await time("no search", enter("q", ""));
  await time("unpack", () => Data.load());
  await time("filter", enter("dataset", "gtsrb"));
  await time("other filter", enter("dataset", "cifar10"));
  await time("drill-down", () => find("#board-2500 tbody button").click());
  return found;
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The path of the page, the number of its records, and the seconds that its HTML took."""
    root = tmp_path_factory.mktemp("paper")
    records = grid(DEFENSES, settings=PAPER, seeds=14)
    seconds = []

    def timed(page):
        start = time.process_time()
        text = render_html(page)
        seconds.append(time.process_time() - start)
        return text

    render_html = render.to_html
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "read_all", lambda _: (records, []))
        patch.setattr(render, "to_html", timed)
        return render.render(root).html, len(records), seconds[0]


def test_size_and_time_of_the_page(page):
    path, records, seconds = page
    size = path.stat().st_size
    print(f"{records:,} records: {size / 1e6:.2f} MB, made in {seconds:.1f} CPU seconds")
    assert records > 24_000
    assert size < LARGEST
    assert seconds < 30


@needed
def test_time_in_the_browser(page):
    library = pytest.importorskip("playwright.sync_api")
    with library.sync_playwright() as started:
        browser = launch(started)
        opened = browser.new_page()
        opened.goto(page[0].as_uri())
        opened.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        found = opened.evaluate(STEPS)
        browser.close()
    print(", ".join(f"{name} {value:.0f} ms" for name, value in found.items()))
    for name, value in found.items():
        assert value < SLOWEST.get(name, SLOWEST_CLICK), name
