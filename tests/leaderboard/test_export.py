"""What could break: LaTeX that does not compile, a method that nobody can cite, bold that lies."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import attacks
import defenses
from bench.cli import app
from leaderboard.export import Exported, board_table, export
from leaderboard.latex import escape, number
from leaderboard.published import SOURCES
from leaderboard.references import citations, references
from leaderboard.report import Report, collect
from leaderboard.statistics import Estimate
from leaderboard.words import BOARD
from tests.leaderboard.synthetic import grid, metrics, record, store
from zoo.sets import DATASETS

ATTACKS = ("badnets", "blended", "wanet", "sig", "smooth", "trojan_square", "l0_invisible")
SETTINGS = [("cifar10", "small_vgg", attack, "all-to-one", 0.1) for attack in ATTACKS]
HOSTILE = r"\input{/etc/passwd} & 5 % $x_1^2$ # ~ <b> {"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    store(folder, grid(settings=SETTINGS, budgets=("0", "100", "2500"), seeds=3))
    store(folder, [record("my-idea", attack=HOSTILE, paper="arXiv:2501.01234")])
    store(folder, [record(HOSTILE, attack="badnets", paper=HOSTILE)])
    return folder


@pytest.fixture(scope="module")
def kit(root: Path) -> Exported:
    return export(root)


@pytest.fixture(scope="module")
def report(root: Path) -> Report:
    return collect(root)


def test_the_kit_is_complete_and_the_same_twice(kit: Exported, root: Path, tmp_path: Path) -> None:
    names = [path.relative_to(kit.folder).as_posix() for path in kit.files]
    assert {"paper.tex", "references.bib", "statement.tex", "tables/2500.tex"} <= set(names)
    assert "tables/published.tex" in names
    assert {"figures/tradeoff.pdf", "figures/pairs.pdf"} <= set(names)
    done = CliRunner().invoke(app, ["export", "--root", str(root), "--out", str(tmp_path / "kit")])
    assert done.exit_code == 0
    assert str(tmp_path / "kit") in done.stdout
    assert "nothing to cite for" in done.stderr
    for name, path in zip(names, kit.files, strict=True):
        assert path.read_bytes() == (tmp_path / "kit" / name).read_bytes()
        assert path.suffix != ".pdf" or path.read_bytes().startswith(b"%PDF")


def test_paper_includes_every_table_and_figure(kit: Exported) -> None:
    text = (kit.folder / "paper.tex").read_text()
    included = set(re.findall(r"\\(?:input|includegraphics\[.*?\])\{(.*?)\}", text))
    parts = {path.relative_to(kit.folder).with_suffix("").as_posix() for path in kit.files}
    assert included == parts - {"paper", "references"}


def test_latex_is_balanced_and_rows_have_their_columns(kit: Exported) -> None:
    for path in kit.folder.rglob("*.tex"):
        text = path.read_text()
        bare = re.sub(r"\\[{}&%$#_\\]", "", text)
        assert bare.count("{") == bare.count("}"), path.name
        assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0, path.name
        for begun in re.findall(r"\\begin\{(\w+)\}", text):
            assert f"\\end{{{begun}}}" in text
        if path.parent.name == "tables":
            columns = re.search(r"@\{\}([lrp]+)@\{\}", re.sub(r"p\{.*?\}", "p", text))
            assert columns is not None
            rows = re.sub(r"\\&", "", text).splitlines()
            found = [row.count("&") + 1 for row in rows if row.endswith(r"\\") and "&" in row]
            assert set(found) == {len(columns[1])}


def test_hostile_names_are_inert(kit: Exported) -> None:
    text = (kit.folder / "tables" / "2500.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\} \& 5 \% \$x\_1\textasciicircum{}2\$" in text
    assert r"\input{/etc" not in "".join(p.read_text() for p in kit.folder.rglob("*.tex"))
    assert escape("a\x00\nb") == "a  b"


def test_bold_is_what_no_other_is_shown_to_beat(report: Report) -> None:
    analysis = next(a for a in report.analyses if a.board.budget == "2500")
    lines = board_table(analysis, citations(report)).splitlines()
    leads = {name for name, row in analysis.rows.items() if row.standing and row.standing.leads}
    bold = [line for line in lines if r"\textbf{" in line]
    assert len(bold) == len(leads)
    assert sum(r"\underline{" in line for line in lines) == 1
    best = next(row.defense for row in analysis.board.rows if row.defense in leads)
    assert rf"\underline{{{best}}}" in bold[0]


def test_numbers_with_and_without_an_interval() -> None:
    score = BOARD[0]
    assert number(None, score) == "---"
    assert number(Estimate(54.21, None, None, 2), score) == "54.2"
    assert number(Estimate(54.21, -1.0, 66.0, 5), score, bold=True) == (
        r"\textbf{54.2} {\tiny {[}$-$1.0, 66.0]}"
    )


def test_everything_cited_has_an_entry_and_nothing_else_is_there(kit: Exported) -> None:
    bib = (kit.folder / "references.bib").read_text()
    entries = set(re.findall(r"^@\w+\{(.+),$", bib, re.MULTILINE))
    cited = {
        key
        for path in kit.folder.rglob("*.tex")
        for keys in re.findall(r"\\cite\{(.*?)\}", path.read_text())
        for key in keys.split(",")
    }
    assert cited <= entries
    assert {"arXiv:2208.03111", "arXiv:1708.06733", "krizhevsky2009learning"} <= entries
    assert "arXiv:2005.00060" not in entries  # MCR is not on this board
    assert "@misc{arXiv:2501.01234" in bib  # of a plugin, to be completed
    assert any("attack" in topic for topic in kit.missing)


def test_every_builtin_and_every_source_has_its_reference() -> None:
    known = references()
    topics = {topic for reference in known.values() for topic in reference.topics}
    for method in (*defenses.ALL, *defenses.BASE_SETS):
        assert method.paper == "control" or method.paper in known, method.name
    assert {f"base set {builder.name}" for builder in defenses.BASE_SETS} <= topics
    for attack in attacks.ALL:
        stated = re.search(r"(arXiv:[\d.]+)$", attack.paper)
        assert stated is not None
        assert f"attack {attack.name}" in topics
        assert f"attack {attack.name}" in known[stated[1]].topics, attack.name
    assert {f"data set {name}" for name in DATASETS} <= topics
    for name, source in SOURCES.items():
        assert f"source {name}" in known[source.paper].topics


def test_entries_are_well_formed() -> None:
    for key, reference in references().items():
        assert reference.text.count("{") == reference.text.count("}"), key
        for field in ("author", "title"):
            assert f"  {field} = {{" in reference.text, key
        number = re.fullmatch(r"arXiv:(.*)", key)
        assert number is None or f"eprint = {{{number[1]}}}" in reference.text


def test_the_statement_counts_what_was_compared(tmp_path: Path) -> None:
    paper = "arXiv:2110.03735v2"
    found = [record(seed=s, after=metrics(0.8, 0.1, 0.7), paper=paper) for s in range(3)]
    store(tmp_path, [*found, record("ft", status="timeout")])
    text = (export(tmp_path).folder / "statement.tex").read_text()
    assert "The comparison has 1 defense~\\cite{arXiv:2110.03735} on 1 setting" in text
    assert "(data set~\\cite{krizhevsky2009learning}" in text
    assert "Seeds per setting: 3." in text
    assert "Of 4 cells 1 failed" in text
