"""What could break: a file that says something else than the board, or that no program can read."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from leaderboard.analysis import Analysis
from leaderboard.markdown import rank, share, to_markdown
from leaderboard.render import files
from leaderboard.report import Report, collect
from leaderboard.standing import Standing
from leaderboard.statistics import estimate
from tests.leaderboard.synthetic import grid, metrics, record, store, victim_json

ATTACKS = ("badnets", "blended", "wanet", "sig", "smooth", "trojan_square", "l0_invisible")
SETTINGS = [
    (dataset, "small_vgg", attack, "all-to-one", 0.1)
    for dataset in ("cifar10", "gtsrb")
    for attack in ATTACKS[:4]
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("report")
    store(root, grid(settings=SETTINGS, budgets=("0", "100", "2500"), failures=0.1))
    victim_json(root, "cifar10-sig-0")
    return collect(root)


@pytest.fixture(scope="module")
def texts(report: Report) -> dict[str, str]:
    return files(report, {"release": "test"})


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def board(report: Report, budget: str) -> Analysis:
    return next(a for a in report.analyses if a.board.budget == budget)


def test_files_are_the_same_twice(report: Report, texts: dict[str, str]) -> None:
    assert files(report, {"release": "test"}) == texts
    assert len(set(texts.values())) == len(texts)


def test_one_line_per_record_with_what_it_counts_as(report: Report, texts: dict[str, str]) -> None:
    found = lines(texts["leaderboard.csv"])
    assert len(found) == len(report.records)
    line = next(x for x in found if x["status"] == "timeout")
    assert line["counted_asr"] == line["before_x1_asr"]
    assert line["after_acc"] == ""
    ok = next(x for x in found if x["status"] == "ok" and x["attack"] == "wanet")
    assert ok["counted_acc"] == ok["after_acc"]
    assert ok["after_x2_ra"] != ""
    assert ok["after_x4_ra"] == ""  # another attack's strength
    assert None not in line  # no value without a heading


def test_boards_in_csv_say_what_the_analysis_says(report: Report, texts: dict[str, str]) -> None:
    found = {(x["budget"], x["defense"]): x for x in lines(texts["boards.csv"])}
    assert len(found) == sum(len(a.board.rows) for a in report.analyses)
    for analysis in report.analyses:
        for row in analysis.board.rows:
            line = found[analysis.board.budget, row.defense]
            assert None not in line
            if not row.ranked:
                assert (line["score"], line["rank_best"], line["removed"]) == ("", "", "")
                continue
            said = analysis.rows[row.defense]
            assert said.standing is not None
            assert line["rank_best"] == str(said.standing.best)
            assert float(line["score"]) == row.figures["score"].mean
            assert float(line["score_low"]) <= float(line["score"]) <= float(line["score_high"])
            assert said.removed is not None
            assert float(line["removed"]) == said.removed.mean
            assert said.worst is not None
            assert line["worst_setting"] == said.worst.setting.key
            assert float(line["cost_images"]) == (row.cost.images if row.cost else math.nan)


def test_every_ordered_pair_is_in_the_csv(report: Report, texts: dict[str, str]) -> None:
    found = lines(texts["comparisons.csv"])
    assert len(found) == sum(len(a.matrix) for a in report.analyses)
    pairs = {(x["budget"], x["one"], x["other"]): x for x in found}
    one, back = pairs["2500", "bcu", "identity"], pairs["2500", "identity", "bcu"]
    assert float(one["mean"]) == -float(back["mean"])
    assert (one["p"], one["n"]) == (back["p"], "8")
    assert float(one["holm"]) >= float(one["p"])
    assert {one["verdict"], back["verdict"]} == {"better", "worse"}


def test_published_figures_stand_beside_ours(texts: dict[str, str]) -> None:
    found = lines(texts["published.csv"])
    line = next(x for x in found if (x["defense"], x["source"]) == ("ibau", "bcu"))
    assert line["budget"] == "2500"
    assert float(line["difference"]) == pytest.approx(
        float(line["measured"]) - float(line["published"])
    )
    assert "architecture resnet18, ours small_vgg" in line["differs"]
    assert line["inside"] in ("True", "False")


def test_json_holds_everything_and_no_nan(report: Report, texts: dict[str, str]) -> None:
    data = json.loads(texts["leaderboard.json"])
    assert data["schema"] == 2
    assert [b["budget"] for b in data["boards"]] == ["0", "100", "2500"]
    rows = {row["defense"]: row for row in data["boards"][2]["rows"]}
    assert set(rows["bcu"]["figures"]["score"]) == {"mean", "low", "high", "n"}
    analysis = rows["bcu"]["analysis"]
    assert analysis["profile"][-1][1] == 1.0
    assert analysis["standing"]["ranked"] == 8
    assert analysis["pareto"]["place"] in ("dominated", "not dominated", "not separated")
    assert rows["clp"]["settings"] == []
    assert len(rows["bcu"]["settings"]) == 10  # with two clean twins
    assert len(data["boards"][2]["comparisons"]) == len(board(report, "2500").matrix)
    assert {ladder["defense"] for ladder in data["ladders"]} >= {"ibau", "bcu", "clp"}
    assert data["published"]
    assert data["victims"]
    assert {f["kind"] for f in data["findings"]} <= {"mixed"}


def test_markdown_begins_short_and_then_gives_all(report: Report, texts: dict[str, str]) -> None:
    text = texts["leaderboard.md"]
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads[:5] == [
        "# Unbackdoor leaderboard",
        "## Budget 0: no data at all",
        "## Budget 100: 100 labelled images in all",
        "## Budget 2500: 2,500 labelled images in all",
        "## From the largest labelled budget to none",
    ]
    assert heads.index("## Data set cifar10") < heads.index("## Data set gtsrb")
    assert "### gtsrb, budget 2500" in heads
    section = text[text.index("## Budget 2500") :]
    row = next(line for line in section.splitlines() if "| bcu " in line)
    cells = [cell.strip() for cell in row.split("|")]
    found = board(report, "2500").rows["bcu"]
    assert cells[1] == rank(found.standing)
    assert found.removed_amplified is not None
    every = round(found.removed_amplified.mean * found.removed_amplified.n)
    assert cells[4] == f"{share(found.removed)}, {every}"
    assert found.worst is not None
    assert cells[5].startswith(f"{found.worst.setting.key}: ")
    assert cells[6].endswith("/24")


def test_ranks_and_shares_read_as_people_write_them() -> None:
    assert rank(None) == "—"
    assert rank(Standing(best=2, worst=2, ranked=9, tested=8)) == "2"
    assert rank(Standing(best=3, worst=7, ranked=9, tested=8)) == "3–7"
    assert share(estimate([1.0] * 11 + [0.0], 1.0)) == "11/12"


def test_one_data_set_is_not_summed_up_twice(tmp_path: Path) -> None:
    store(tmp_path, [record(seed=s, after=metrics(0.8 + 0.01 * s, 0.1, 0.7)) for s in range(3)])
    text = to_markdown(collect(tmp_path))
    assert text.count("## Data set") == 1
    assert "| — | ibau" in " ".join(text.split())  # one setting: no rank
    assert "0/1" in text  # ASR 10 % is not below 10 %


def test_findings_are_in_every_format(tmp_path: Path) -> None:
    store(tmp_path, [record(after=metrics(0.99, 0.0, 0.9))])
    found = files(collect(tmp_path), {})
    assert "implausible: ibau at 2500" in found["leaderboard.md"]
    assert json.loads(found["leaderboard.json"])["findings"][0]["kind"] == "implausible"


def test_nothing_gives_headings_only(tmp_path: Path) -> None:
    found = files(collect(tmp_path), {})
    for name in ("leaderboard.csv", "boards.csv", "comparisons.csv", "published.csv"):
        assert found[name].count("\n") == 1
