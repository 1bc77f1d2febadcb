"""The paper kit: LaTeX tables, figures as PDF, BibTeX of all that is on the board, and a text.

``paper.tex`` holds them together and can be compiled as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.records import slug, write_atomic
from leaderboard.aggregate import Row
from leaderboard.analysis import Analysis, RowAnalysis
from leaderboard.canvas import to_pdf
from leaderboard.comparison import CONTRASTS, LEAST_SETTINGS
from leaderboard.figures import Drawing, drawings
from leaderboard.latex import escape, number, table
from leaderboard.markdown import coverage, rank, share
from leaderboard.markdown import seeds as span
from leaderboard.published import Beside, Gap
from leaderboard.references import Citations, citations
from leaderboard.report import Report, collect
from leaderboard.words import BOARD, Column, board_title, budget_words, percent, plural

FOLDER: Final = "paper"
COLUMNS: Final = BOARD[:5]
_TEXT: Final = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,longtable,graphicx}
\begin{document}
%s
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Where the kit is, and for what there is nothing to cite."""

    folder: Path
    files: tuple[Path, ...]
    missing: tuple[str, ...]


def export(root: Path, folder: Path | None = None) -> Exported:
    """Writes the kit into a folder, by default ``root/leaderboard/paper``."""
    report = collect(root)
    cited = citations(report)
    pictures = drawings(report.analyses, {victim.key: victim for victim in report.victims})
    contents: dict[str, str | bytes] = {"statement.tex": statement(report, cited)}
    for analysis in report.analyses:
        contents[f"tables/{slug(analysis.board.budget)}.tex"] = board_table(analysis, cited)
    if report.published:
        contents["tables/published.tex"] = published_table(report.published, cited)
    contents["paper.tex"] = _paper(contents, pictures)
    contents["references.bib"] = "\n".join(reference.text for reference in cited.entries)
    for picture in pictures:
        contents[f"figures/{picture.name}.pdf"] = to_pdf(picture.plot, picture.size)
    base = folder or root / "leaderboard" / FOLDER
    for name, content in contents.items():
        write_atomic(base / name, content)
    return Exported(
        folder=base,
        files=tuple(base / name for name in sorted(contents)),
        missing=cited.missing,
    )


def _paper(parts: Iterable[str], pictures: Sequence[Drawing]) -> str:
    inputs = [rf"\input{{{name.removesuffix('.tex')}}}" for name in parts]
    figures = [
        "\\begin{figure}\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{figures/{picture.name}}}\n"
        f"\\caption{{{escape(picture.caption)}}}\n\\end{{figure}}"
        for picture in pictures
    ]
    return _TEXT % "\n".join([*inputs, *figures])


def statement(report: Report, cited: Citations) -> str:
    """What was compared, on how much, and how it was tested: a paragraph for the paper."""
    rows = [row for board in report.boards for row in board.rows if row.ranked]
    names = {row.defense for row in rows}
    settings = {s.setting.key for row in rows for s in row.settings if not s.setting.clean}
    seeds = (min((r.seeds[0] for r in rows), default=0), max((r.seeds[1] for r in rows), default=0))
    failed = sum(outcome.failed for outcome in report.outcomes)
    sentences = (
        f"The comparison has {plural(len(names), 'defense')}{_cite(cited, 'defense', 'base')} on "
        f"{plural(len(settings), 'setting')} (data set{_cite(cited, 'data')}, architecture, "
        f"attack{_cite(cited, 'attack')}, label rule and poison rate), all with the same data. "
        f"Seeds per setting: {span(seeds)}.",
        f"Of {plural(len(report.outcomes), 'cell')} {failed:,} failed; they count as the "
        "undefended model.",
        "Figures are means over settings of means over seeds.",
        "Intervals are 95 %: Student's t for accuracies; for the score and for shares of triggered "
        "images, which are usually all or nothing, Jeffreys' interval for a bounded mean.",
        "Two defenses are compared over the settings that both have, by a sign-flip permutation "
        f"test of the score ({LEAST_SETTINGS} settings at least; differences up to "
        f"{CONTRASTS['score'].margin:g} points are ties). Its interval of 95 % is that of the pair "
        "alone. A rank range counts those shown to be better and those shown to be worse.",
    )
    return "\n".join(escape_but_cite(sentence) for sentence in sentences) + "\n"


def _cite(cited: Citations, *kinds: str) -> str:
    """All keys of topics that begin with one of these words; empty without any."""
    topics = (topic for topic in cited.keys if topic.split()[0] in kinds)
    keys = sorted({key for topic in topics for key in cited.keys[topic]})
    return rf"~\cite{{{','.join(keys)}}}" if keys else ""


def escape_but_cite(sentence: str) -> str:
    r"""Escapes what is outside of ``~\cite{...}``."""
    head, mark, rest = sentence.partition(r"~\cite{")
    if not mark:
        return escape(sentence)
    keys, _, tail = rest.partition("}")
    return f"{escape(head)}{mark}{keys}}}{escape_but_cite(tail)}"


def board_table(analysis: Analysis, cited: Citations) -> str:
    """One board: what no other is shown to beat is bold, the best mean is underlined too."""
    board = analysis.board
    rows = [row for row in board.rows if row.ranked]
    # Of those that could be tested: the best mean of all may be one of a single setting.
    best = next((row.defense for row in rows if _leads(analysis.rows[row.defense])), "")
    body = [_row(row, analysis.rows[row.defense], cited, row.defense == best) for row in rows]
    heads = ["Rank", "Defense", *map(_head, COLUMNS), escape("ASR < 10 %"), "Cells"]
    title = escape(f"{board_title(board.budget)}: {budget_words(board.budget)}.")
    caption = (
        f"{title} Means over settings with 95\\,\\% intervals. Bold: no other defense is shown to "
        "be better; underlined: the best mean. Rank: the range of places that paired comparisons "
        "leave. Oracles and controls are marked."
    )
    defense = r"p{0.2\linewidth}"  # long hyper-parameters break over lines
    return table(f"r{defense}" + "r" * (len(heads) - 2), heads, body, caption)


def _head(column: Column) -> str:
    unit = f" ({column.unit})" if column.unit == "%" else ""
    return escape(column.title + unit)


def _row(row: Row, found: RowAnalysis, cited: Citations, best: bool) -> list[str]:
    name = escape(row.defense)
    name = rf"\underline{{{name}}}" if best else name
    kind = " (oracle)" * row.oracle + " (control)" * row.control
    figures = (
        number(row.figures.get(c.key), c, bold=c.key == "score" and _leads(found)) for c in COLUMNS
    )
    plain = row.defense.partition("@")[0].split("[")[0]
    return [
        escape(rank(found.standing)),
        f"{name}{kind} {cited.of(f'defense {plain}')}".strip(),
        *figures,
        escape(share(found.removed)),
        escape(coverage(row)),
    ]


def _leads(found: RowAnalysis) -> bool:
    return found.standing is not None and found.standing.leads


def published_table(found: Sequence[Beside], cited: Citations) -> str:
    """Printed figures beside measured ones, ACC and ASR."""
    heads = ["Defense", "Setting", "Budget", "Source", "ACC", "ours", "ASR", "ours"]
    columns = {column.key: column for column in BOARD}
    body = [
        [
            escape(beside.defense),
            escape(beside.setting.label),
            escape(beside.budget),
            f"{beside.published.source} {cited.of(f'source {beside.published.source}')}",
            *_gap(beside.gaps, columns["acc"]),
            *_gap(beside.gaps, columns["asr"]),
        ]
        for beside in found
    ]
    caption = (
        "Printed figures beside measured ones, in percent, for the nearest published setting. "
        "Conditions differ; \\texttt{published.csv} says how."
    )
    return table("llllrrrr", heads, body, caption)


def _gap(gaps: Mapping[str, Gap], column: Column) -> tuple[str, str]:
    gap = gaps.get(column.key)
    if gap is None:
        return escape("—"), escape("—")
    return escape(percent(gap.published)), number(gap.measured, column)
