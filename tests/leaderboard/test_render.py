"""What could break: bytes that differ, markup that escapes, numbers that only JavaScript shows."""

import base64
import csv
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.records import path_of, scan
from bench.specs import parse_spec
from leaderboard.markdown import escape, to_markdown
from leaderboard.markup import paper
from leaderboard.payload import options
from leaderboard.render import Rendered, render
from leaderboard.report import collect
from leaderboard.victims import Setting
from leaderboard.words import count, duration, percent, plural, points, size
from tests.leaderboard.synthetic import SETTINGS, grid, metrics, record, store, victim_json

EVIL = '"><script>alert(1)<img src=x onerror=alert(1)>|`x`|](javascript:alert(1))'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    root = tmp_path_factory.mktemp("page")
    store(root, grid(seeds=2, failures=0.1))
    victim_json(root, "cifar10-sig-0")
    return render(root)


def unpacked(text: str) -> Any:
    """What the page's script reads: the packed settings and cells."""
    packed = re.search(r'id="payload">([^<]*)</script>', text)
    assert packed is not None
    return json.loads(zlib.decompress(base64.b64decode(packed[1])))


class Outline(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_importing_the_leaderboard_loads_no_torch_and_no_matplotlib() -> None:
    code = (
        "import sys, leaderboard.render; "
        "print(sorted({'torch', 'matplotlib', 'pandas', 'attacks', 'defenses', 'zoo.models'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_same_records_give_the_same_bytes(tmp_path: Path, page: Rendered) -> None:
    store(tmp_path, reversed(grid(seeds=2, failures=0.1)))
    victim_json(tmp_path, "cifar10-sig-0")
    again = render(tmp_path)
    for name in ("html", "markdown", "csv", "json"):
        assert getattr(again, name).read_bytes() == getattr(page, name).read_bytes()


def test_every_number_is_in_the_html_without_javascript(page: Rendered) -> None:
    text = page.html.read_text()
    data = json.loads(page.json.read_text())
    assert [board["budget"] for board in data["boards"]] == [
        "0",
        "1",
        "100",
        "2500",
        "unlabeled",
        "ood",
    ]
    for board in data["boards"]:
        for row in board["rows"]:
            for value in row["figures"].values():
                assert f'data-v="{value["mean"]:.6g}"' in text
            for setting in row["settings"]:
                if "score" in setting["figures"]:
                    score, acc, asr = (
                        setting["figures"][n]["mean"] for n in ("score", "acc", "asr")
                    )
                    printed = f"{points(score)}<small>{percent(acc)} / {percent(asr)}</small>"
                    assert printed in text


def test_published_figures_and_findings_stand_on_the_page(tmp_path: Path) -> None:
    twice = metrics(0.8712, 0.0534, 0.7123)
    copied = [
        record(seed=0, after=twice),
        record(seed=0, attack="blended", after=twice),
    ]
    store(tmp_path, [*copied, record(seed=1), record(seed=2)])
    done = render(tmp_path)
    data = json.loads(done.json.read_text())
    text = done.html.read_text()
    published = text[text.index('id="papers"') : text.index('id="victims"')]
    assert published.count("<tr data-dataset") == len(data["published"]) > 0
    for line in data["published"]:
        assert line["gaps"]
        for name in line["gaps"]:
            theirs = percent(line["published"]["figures"][name])
            assert f"<small>theirs {theirs}</small>" in published
    assert data["findings"]
    for finding in data["findings"]:
        assert html.escape(finding["text"])[:200] in text
    assert f"They found {plural(len(data['findings']), 'thing')}" in text


def test_every_cell_is_in_the_payload(page: Rendered) -> None:
    data = unpacked(page.html.read_text())
    cells = data["cells"]
    lines = list(csv.DictReader(io.StringIO(page.csv.read_text())))
    keys = {key: place for place, key in enumerate(cells["key"])}
    assert len(keys) == len(lines)
    for line in lines:
        at = keys[line["key"][:12]]
        setting = data["settings"][cells["s"][at]]
        assert data["defenses"][cells["d"][at]]["name"] == line["defense"]
        assert data["budgets"][cells["b"][at]] == line["budget"]
        assert (setting["dataset"], setting["attack"]) == (line["dataset"], line["attack"])
        assert (cells["seed"][at], cells["again"][at]) == (int(line["victim_seed"]), 0)
        reason = cells["reason"][at]
        assert line["reason"] == ("" if reason < 0 else data["reasons"][reason])
        if line["counted_asr"]:
            assert cells["asr0"][at] == round(1000 * float(line["counted_asr"]))
            assert cells["score"][at] == round(10 * float(line["counted_score"]))


def test_logs_of_failed_cells_are_quoted_and_cut(tmp_path: Path) -> None:
    error = {"type": "RuntimeError", "message": "boom"}
    failed, fine = record(seed=0, status="error", error=error), record(seed=1)
    store(tmp_path, [failed, fine])
    for each, text in ((failed, "x" * 5000 + "</script>last"), (fine, "all is well")):
        path_of(tmp_path, each).with_suffix(".log").write_text(text)
    data = unpacked(render(tmp_path).html.read_text())
    (log,) = data["logs"]
    assert log.startswith("…x")
    assert log.endswith("</script>last")
    assert len(log) == 1201
    assert [at for at in data["cells"]["log"] if at >= 0] == [0]


def test_page_is_complete_and_accessible(page: Rendered) -> None:
    outline = Outline(page.html.read_text())
    tables = outline.named("table")
    scrolling = [
        div for div in outline.named("div") if "scroll" in (div.get("class") or "").split()
    ]
    assert len(scrolling) == len(tables)
    assert all(div["tabindex"] == "0" for div in scrolling)
    assert all(div.get("aria-labelledby") or div.get("aria-label") for div in scrolling)
    assert all(cell.get("scope") for cell in outline.named("th"))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [a["href"] for a in outline.named("a") if (a["href"] or "").startswith("#")]
    assert {(link or "")[1:] for link in inside} <= set(ids)
    words = " ".join(outline.words)
    for phrase in ("same as 0", "not applicable: needs labels", "counted as the undefended model"):
        assert phrase in words
    assert "Rejected at the gate: 1 victim" in words
    assert "seed 0: ASR 82.0% is below 90.0%" in words


def test_policy_names_exactly_this_script_and_this_style(page: Rendered) -> None:
    text = page.html.read_text()
    stated = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert stated is not None
    rules = dict(rule.split(" ", 1) for rule in html.unescape(stated[1]).split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    for tag in ("script", "style"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_is_loaded_from_anywhere(page: Rendered) -> None:
    text = page.html.read_text()
    outline = Outline(text)
    without_links = re.sub(r'href="https://(arxiv|doi)\.org/[^"]*"', "", text)
    assert not re.search(r"https?://|url\(|@import", without_links)
    assert not outline.named("link")
    assert not outline.named("iframe")
    assert not outline.named("img")
    assert {svg["role"] for svg in outline.named("svg")} == {"img"}
    assert all(svg["aria-label"] for svg in outline.named("svg"))
    # The policy would block it, and the console would say so.
    assert not [a for _, a in outline.tags if "style" in a or any(n.startswith("on") for n in a)]


def test_hostile_texts_are_inert(tmp_path: Path) -> None:
    long = "x" * 5000
    error = {"type": "Bad</script></style>", "message": f"{EVIL} \ud800 \x00 {long}"}
    store(
        tmp_path,
        [
            record(EVIL, origin=f"file:{EVIL}.py", paper="javascript:alert(1)"),
            record("神-$x_1$", paper=f"https://example.org/{EVIL}"),
            record("crash", status="error", error=error),
            record("refuse", status="not-applicable", error=error),
        ],
    )
    victim_json(tmp_path, "evil", reasons=[EVIL], attack=EVIL)
    done = render(tmp_path)
    text = done.html.read_text()
    outline = Outline(text)
    assert [script.get("type") for script in outline.named("script")] == ["application/json", None]
    assert not outline.named("img")
    links = {link["href"] for link in outline.named("a")}
    assert not [
        link for link in links if not re.match(r"#|[a-z]+\.(csv|json|md)$|https://", link or "")
    ]
    assert EVIL in " ".join(outline.words)
    assert long not in text
    assert not re.search(r"<(?!br>)", done.markdown.read_text())
    rows = list(csv.DictReader(io.StringIO(done.csv.read_text())))
    assert any(long in row["reason"] for row in rows)


def test_markdown_cells_cannot_be_left() -> None:
    assert escape("a|b\\|c\nd <b>") == "a\\|b\\\\\\|c d &lt;b>"
    assert escape("[x](javascript:y)") == "[x]\\(javascript:y)"
    assert escape("ibau[mode=repository]") == "ibau[mode=repository]"


def test_markdown_tables_are_rectangular(page: Rendered) -> None:
    text = page.markdown.read_text()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "## Budget 2500: 2,500 labelled images in all" in text
    assert "same as 0" in text


def test_csv_has_one_line_per_record(page: Rendered) -> None:
    lines = list(csv.DictReader(io.StringIO(page.csv.read_text())))
    assert len(lines) == page.records == len(grid(seeds=2))
    failed = next(line for line in lines if line["status"] in ("timeout", "error", "diverged"))
    assert failed["counted_acc"] == failed["before_acc"]
    assert failed["after_acc"] == ""


def test_stale_and_superseded_records_are_left_out_and_counted(tmp_path: Path) -> None:
    fresh, stale = record(seed=0, ended="b"), record(seed=1)
    store(tmp_path, [fresh, stale, record(seed=0, ended="a")])
    keys = {path.stem for path in scan(tmp_path)} - {stale.key}
    done = render(tmp_path, current_keys=keys)
    assert (done.records, done.stale, done.superseded) == (1, 1, 1)
    assert "1 record left out as stale" in done.html.read_text()
    assert render(tmp_path).records == 2
    assert render(tmp_path, current_keys=set()).records == 0


def test_unreadable_files_are_named_and_harm_nothing(tmp_path: Path) -> None:
    store(tmp_path, [record()])
    broken = tmp_path / "records" / "clp" / "ab" / "abc.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    victim_json(tmp_path, "nonsense", metrics={"acc": 1})
    victim_json(tmp_path, "unknown", status="great")
    done = render(tmp_path)
    assert done.records == 1
    assert len(done.problems) == 3
    text = done.html.read_text()
    assert "abc.json" in text
    assert "zoo/nonsense/victim.json" in text


def test_empty_store_says_what_to_run(tmp_path: Path) -> None:
    done = render(tmp_path)
    assert done.records == 0
    assert "bench run --all" in done.html.read_text()
    assert "bench run --all" in done.markdown.read_text()
    assert json.loads(done.json.read_text())["boards"] == []
    assert done.csv.read_text().startswith("key,status")


def test_of_two_recipes_the_page_shows_the_victim_that_records_rest_on(tmp_path: Path) -> None:
    place = {"attack": "badnets", "label_rule": "all-to-one", "poison_rate": 0.1}
    training = {"steps": None, "epochs": 8}
    used = {"status": "admitted", "reasons": [], "weights_sha256": "a" * 64}
    victim_json(tmp_path, "a", **place, **used, recipe={"training": training})
    victim_json(tmp_path, "b", **place, weights_sha256="b" * 64)  # refused, and last by name
    done = replace(record(), inputs={"victim": "a" * 64, "twin": "c" * 64})
    store(tmp_path, [done])
    report = collect(tmp_path)
    (shown,) = report.victims
    assert (shown.status, shown.weights, shown.training) == ("admitted", "a" * 64, "8 epochs")
    assert (report.twins, report.spare) == (1, 1)
    assert any("1 model of the zoo left out" in text for text in report.omissions)
    text = to_markdown(report)
    assert "8 epochs" in text
    assert "rejected" not in text
    # A victim that only the records know is shown as they remember it.
    store(tmp_path, [replace(record("ft", ended="2030"), inputs={"victim": "d" * 64})])
    (shown,) = collect(tmp_path).victims
    assert (shown.status, shown.weights) == ("used", "d" * 64)


def test_without_records_the_admitted_one_of_two_recipes_is_shown(tmp_path: Path) -> None:
    victim_json(tmp_path, "a", weights_sha256="a" * 64)
    victim_json(tmp_path, "b", weights_sha256="b" * 64, status="admitted", reasons=[])
    (shown,) = collect(tmp_path).victims
    assert (shown.status, shown.weights) == ("admitted", "b" * 64)


def test_rejected_victim_is_reported_and_used_nowhere(tmp_path: Path) -> None:
    victim_json(tmp_path, "sig")
    victim_json(tmp_path, "twin", status="twin", attack="none", target=None, twin_metrics=None)
    data = json.loads(render(tmp_path).json.read_text())
    assert [(v["status"], v["reasons"]) for v in data["victims"]] == [
        ("rejected", ["ASR 82.0% is below 90.0%"])
    ]
    assert data["boards"] == []


def test_only_papers_become_links() -> None:
    assert 'href="https://arxiv.org/abs/2208.03111"' in paper("arXiv:2208.03111")
    assert 'href="https://doi.org/10.1000/xyz.12"' in paper("doi:10.1000/xyz.12")
    assert 'href="https://example.org/a"' in paper("https://example.org/a")
    for text in ("", "see the docs", "javascript:alert(1)", 'https://x.org/"onclick="', EVIL):
        assert "href" not in paper(text)


def test_costs_read_as_people_write_them() -> None:
    assert [duration(s) for s in (3.14, 42.4, 600, 9000)] == ["3.1 s", "42 s", "10.0 min", "2.5 h"]
    assert [count(n) for n in (0, 999, 12_300, 2.5e6)] == ["0", "999", "12.3 k", "2.5 M"]
    assert [size(b) for b in (2**29, 3 * 2**30)] == ["512 MiB", "3.0 GiB"]


def test_single_defense_and_flat_figures_still_draw(tmp_path: Path) -> None:
    store(tmp_path, [record(seed=s, after=metrics(0.9, 0.0, 0.9)) for s in range(3)])
    text = render(tmp_path).html.read_text()
    assert '<td data-v="0.9">90.0' in text
    assert not re.search(r">\s*(±)?(nan|inf)", text)


def test_training_anew_stands_apart(tmp_path: Path) -> None:
    anew = record("dp", "poisoned-train", needs="poisoned-train")
    store(tmp_path, [record("ft"), anew])
    done = render(tmp_path)
    text = done.html.read_text()
    overview = text[text.index('<section id="overview">') : text.index('<section class="board"')]
    assert "ft" in overview
    assert "dp" not in overview
    title = "Trained from the poisoned set"
    assert f'<a href="#budget-poisoned-train">{title}</a>' in text
    assert text.count(f"<h2>{title}") == 1
    assert f"## {title}: the whole training set" in done.markdown.read_text()
    flags = {b["budget"]: b["apart"] for b in json.loads(done.json.read_text())["boards"]}
    assert flags == {"2500": False, "poisoned-train": True}


def test_training_anew_alone_makes_a_page_without_an_overview(tmp_path: Path) -> None:
    store(tmp_path, [record("dp", "poisoned-train", needs="poisoned-train")])
    text = render(tmp_path).html.read_text()
    assert 'id="overview"' not in text
    assert "#overview" not in text
    assert "Trained from the poisoned set" in text


def test_the_command_of_a_setting_names_exactly_its_attack() -> None:
    names = ("dataset", "arch", "attack", "label_rule", "poison_rate")
    for fields in (*SETTINGS, ("gtsrb", "small_vgg*0.5", "sig[delta=60]", "clean-label", 0.8)):
        setting = Setting(**dict(zip(names, fields, strict=True)))
        chosen = options(setting)
        assert chosen[:4] == ["--dataset", fields[0], "--arch", "small_vgg"]
        attack, params = parse_spec(chosen[5])
        assert (params.pop("label_rule"), params.pop("poison_rate")) == fields[3:]
        assert parse_spec(fields[2]) == (attack, params)
    assert (
        len(
            options(
                Setting(**dict(zip(names, ("signs", "vgg16", "none", "none", 0.0), strict=True)))
            )
        )
        == 4
    )
