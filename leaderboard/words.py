"""Names and number formats: budgets, statuses, columns. Markdown and HTML say the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

CONTROLS: Final = frozenset({"identity", "scramble", "ft"})
STATUS_WORDS: Final = {
    "ok": "ok",
    "not-applicable": "not applicable",
    "not-detected": "nothing detected",
    "diverged": "diverged",
    "timeout": "timeout",
    "out-of-memory": "out of memory",
    "killed": "killed",
    "error": "error",
    "import-error": "import error",
    "interrupted": "interrupted",
}
TRAINING_SET: Final = "poisoned-train"  # in place of a budget: the victim's own training set
_NAMED: Final = {
    "0": "no data at all",
    "1": "one labelled image per class",
    "1t": "one labelled image in all",
    "unlabeled": "the images of 2500, without labels",
    "ood": "2,500 unlabelled images from another data set",
    TRAINING_SET: "the whole training set, its poison included; no clean data",
}
# The protocol's own ladder comes first, then sizes per class, then any other size, then no labels.
_LADDER: Final = ("0", "1", "1t", "100", "2500")
_LAST: Final = ("unlabeled", "ood", TRAINING_SET)
Order = tuple[int, int, str]


def budget_order(budget: str) -> Order:
    """Sort key that puts budgets in the order of the protocol."""
    if budget in _LADDER:
        return 0, _LADDER.index(budget), budget
    if budget in _LAST:
        return 4, _LAST.index(budget), budget
    if match := re.fullmatch(r"(\d+)pc", budget):
        return 1, int(match[1]), budget
    return (2, int(budget), budget) if budget.isdecimal() else (3, 0, budget)


def budget_words(budget: str) -> str:
    """What the defender gets, in words."""
    if budget in _NAMED:
        return _NAMED[budget]
    if match := re.fullmatch(r"(\d+)pc", budget):
        return f"{int(match[1]):,} labelled images per class"
    return f"{int(budget):,} labelled images in all" if budget.isdecimal() else budget


def board_title(budget: str) -> str:
    """The heading of a board."""
    return "Trained from the poisoned set" if budget == TRAINING_SET else f"Budget {budget}"


def labelled_size(budget: str) -> Order | None:
    """Orders labelled budgets by size; None for the others. A total beats one image per class."""
    if budget in _LAST or not re.fullmatch(r"\d+(pc|t)?", budget) or budget == "0":
        return None
    if budget in ("1", "1t"):
        return 0, budget == "1", budget
    return (2, int(budget), budget) if budget.isdecimal() else (1, int(budget[:-2] or 0), budget)


def is_control(defense: str) -> bool:
    """Controls are ordinary rows with a mark. ``ft@fred`` is a method of its own, not plain ft."""
    return defense.split("[")[0] in CONTROLS


def decimals(value: float, digits: int) -> str:
    """Fixed decimals, a real minus sign, and never a negative zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def percent(value: float) -> str:
    """A fraction as percent with one decimal, without the sign."""
    return decimals(100 * value, 1)


def points(value: float) -> str:
    """A score between 0 and 100."""
    return decimals(value, 1)


def rating(value: float) -> str:
    """A DER between 0 and 1."""
    return decimals(value, 3)


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """A count of images, three digits at most."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def size(octets: float) -> str:
    """Bytes in MiB or GiB."""
    mebibytes = octets / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def shorten(text: str, limit: int) -> str:
    """The beginning of a long text; the CSV holds the whole."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def plural(number: int, noun: str) -> str:
    """``1 cell``, ``2,000 cells``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class Column:
    """One figure of a table: its key in ``figures``, its heading, and how it is printed."""

    key: str
    title: str
    unit: str
    best: Literal["high", "low"]
    text: Callable[[float], str]


_SCORE: Final = Column("score", "Score", "0–100", "high", points)
_ACC: Final = Column("acc", "ACC", "%", "high", percent)
_ASR: Final = Column("asr", "ASR", "%", "low", percent)
_RA: Final = Column("ra", "RA", "%", "high", percent)
_WORST: Final = Column("worst_asr", "Worst ASR", "%", "low", percent)
_DER: Final = Column("der", "DER", "0–1", "high", rating)
_LOSS: Final = Column("twin_loss", "Twin loss", "points", "low", percent)

BOARD: Final = (_SCORE, _ACC, _ASR, _RA, _WORST, _DER, _LOSS)
CLEAN_DETAIL: Final = (_ACC, _LOSS)
