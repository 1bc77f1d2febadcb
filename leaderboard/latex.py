"""Tables for a paper, with booktabs. Text from outside stays in its cell and is no command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from leaderboard.statistics import Estimate
from leaderboard.words import Column

_SPECIAL: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # after a line break it would be taken for an argument
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "…": r"\dots{}",
}
_ANY: Final = re.compile("|".join(map(re.escape, _SPECIAL)))


def escape(text: str) -> str:
    """Text as LaTeX prints it; control characters and line breaks become blanks."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return _ANY.sub(lambda match: _SPECIAL[match[0]], flat)


def number(value: Estimate | None, column: Column, *, bold: bool = False) -> str:
    """A mean, and small beside it the ends of its interval."""
    if value is None:
        return escape("—")
    mean = escape(column.text(value.mean))
    mean = rf"\textbf{{{mean}}}" if bold else mean
    if value.low is None or value.high is None:
        return mean
    ends = escape(f"[{column.text(value.low)}, {column.text(value.high)}]")
    return rf"{mean} {{\tiny {ends}}}"


def table(align: str, heads: Sequence[str], body: Sequence[Sequence[str]], caption: str) -> str:
    """A ``longtable``, which breaks over pages where it must; cells are LaTeX already.

    Args:
        align: one column type per column.
        heads: headings.
        body: rows, each as long as ``heads``.
        caption: above the table.
    """
    rows = "".join(f"{' & '.join(row)} \\\\\n" for row in body)
    return (
        "% Needs \\usepackage{booktabs,longtable}\n"
        "{\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\begin{{longtable}}{{@{{}}{align}@{{}}}}\n\\caption{{{caption}}} \\\\\n\\toprule\n"
        f"{' & '.join(heads)} \\\\\n\\midrule\n\\endhead\n\\bottomrule\n\\endlastfoot\n"
        f"{rows}\\end{{longtable}}}}\n"
    )
