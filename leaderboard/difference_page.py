"""The comparison of two roots as Markdown, for a pull request, and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

from leaderboard.comparison import LEAST_SETTINGS
from leaderboard.difference import Block, Changes, Shift, Turn, rule
from leaderboard.markdown import escape, to_table
from leaderboard.statistics import LEAST
from leaderboard.words import count, decimals, percent, plural, points

NOTHING: Final = "Nothing changed beyond noise."
NAMES: Final = {"score": "score", "asr": "ASR", "acc": "ACC", "cost": "cost", "pgd_8": "PGD 8"}
_SETTINGS: Final = 3  # that are named in a line; JSON has all


def to_markdown(changes: Changes, old: str, new: str) -> str:
    """The whole text; equal input gives equal text."""
    few, beyond = changes.of("too few"), changes.of("beyond")
    parts = [
        f"# What changed from {escape(old)} to {escape(new)}\n",
        f"**{headline(changes)}**\n",
        _sums(changes),
        _shifts("Changed beyond noise", "", beyond),
        _shifts(
            "Moved, with too few pairs to tell",
            f"By more than what counts as the same, in fewer than {LEAST} seeds: no test, perhaps "
            "noise.",
            few,
        ),
        _turns("Changed status", changes.statuses),
        _turns("Victims", changes.victims),
        _blocks("Appeared", changes.appeared),
        _blocks("Disappeared", changes.disappeared),
        _inputs(changes),
        _list("Could not be read", changes.problems),
        f"## How this was decided\n\n{rule()}\n",
    ]
    return "\n".join(part for part in parts if part)


def headline(changes: Changes) -> str:
    """One line that says it all."""
    beyond, few = changes.of("beyond"), changes.of("too few")
    first = f"{plural(len(beyond), 'change')} beyond noise." if beyond else NOTHING
    worse = sum(not shift.better for shift in beyond)
    more = [
        f"{worse} for the worse" if worse else "",
        f"{plural(len(few), 'move')} that too few seeds cannot tell from noise" if few else "",
        _cells("changed status", sum(len(turn.seeds) for turn in changes.statuses)),
        _cells("appeared", sum(block.cells for block in changes.appeared)),
        _cells("disappeared", sum(block.cells for block in changes.disappeared)),
    ]
    rest = "; ".join(part for part in more if part)
    return f"{first} {rest[0].upper()}{rest[1:]}." if rest else first


def _cells(what: str, number: int) -> str:
    return f"{plural(number, 'cell')} {what}" if number else ""


def _sums(changes: Changes) -> str:
    old, new = changes.records
    within = len(changes.of("within"))
    return (
        f"{plural(old, 'cell')} before, {new:,} now; {changes.paired:,} on both sides, of which "
        f"{changes.equal:,} have the same status and figures. "
        f"{plural(within, 'figure')} moved within noise.\n"
    )


def _shifts(title: str, note: str, shifts: Sequence[Shift]) -> str:
    if not shifts:
        return ""
    heads = ["Defense", "Budget", "Setting", "Figure", "Before", "Now", "Change", "Pairs", ""]
    body = [
        [
            escape(shift.defense),
            escape(shift.budget),
            escape(shift.setting) or f"all {shift.pairs}",
            NAMES[shift.figure],
            _value(shift.figure, shift.old),
            _value(shift.figure, shift.new),
            _change(shift),
            plural(shift.pairs, "seed" if shift.setting else "setting"),
            "better" if shift.better else "worse",
        ]
        for shift in shifts
    ]
    align = ["left"] * 4 + ["right"] * 4 + ["left"]
    return f"## {title}\n\n{note}{chr(10) * 2 if note else ''}{to_table(heads, body, align)}"


def _value(figure: str, value: float) -> str:
    if figure == "cost":
        return count(math.expm1(value))
    return points(value) if figure == "score" else f"{percent(value)} %"


def _change(shift: Shift) -> str:
    """With its interval; of the cost, which is compared by factors, a factor."""
    ends = [shift.change] if shift.low is None else [shift.change, shift.low, shift.high or 0.0]
    if shift.figure == "cost":
        texts = [f"× {math.exp(end):.2f}" for end in ends]
    else:
        scale = 1 if shift.figure == "score" else 100
        texts = [("+" if end > 0 else "") + decimals(scale * end, 1) for end in ends]
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _turns(title: str, turns: Sequence[Turn]) -> str:
    if not turns:
        return ""
    heads = ["", "Setting", "Before", "Now", "Seeds"]
    body = [
        [*map(escape, (t.name, t.setting, t.old, t.new)), ", ".join(map(str, t.seeds))]
        for t in turns
    ]
    return f"## {title}\n\n{to_table(heads, body, ['left'] * 5)}"


def _blocks(title: str, blocks: Sequence[Block]) -> str:
    if not blocks:
        return ""
    body = [[escape(b.defense), escape(b.budget), str(b.cells), _settings(b)] for b in blocks]
    align = ["left", "left", "right", "left"]
    return f"## {title}\n\n{to_table(['Defense', 'Budget', 'Cells', 'Settings'], body, align)}"


def _settings(block: Block) -> str:
    named = "; ".join(block.settings[:_SETTINGS])
    left = len(block.settings) - _SETTINGS
    return escape(f"{named}; and {left} more" if left > 0 else named)


def _inputs(changes: Changes) -> str:
    """Which inputs of paired cells differ: where a change may come from."""
    body = [
        [escape(defense), escape(", ".join(f"{name} ({n})" for name, n in counts.items()))]
        for defense, counts in changes.inputs.items()
    ]
    if not body:
        return ""
    table = to_table(["Defense", "Inputs (cells)"], body, ["left", "left"])
    return f"## Inputs that differ\n\n{table}"


def _list(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "".join(f"- {escape(line)}\n" for line in lines) if lines else ""


def to_json(changes: Changes) -> dict[str, Any]:
    """The same as JSON values, with all that moved within noise."""
    found = dataclasses.asdict(changes)
    return {
        "nothing_changed_beyond_noise": not changes.of("beyond"),
        "least": {"seeds": LEAST, "settings": LEAST_SETTINGS},
        "rule": rule(),
        **found,
    }
