"""What everything that is registered owes the harness: rules, each with its reason and its remedy.

`bench check` runs them over a plugin, our own tests over what is built in. A rule is a function of
a *trial*, which runs the thing on toys and remembers what happened. It says nothing, or raises
:class:`Violation`; any other exception is a violation as well.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

Verdict = Literal["pass", "note", "fail"]
T = TypeVar("T")
_LINES: Final = 12  # of a traceback


class Violation(Exception):  # noqa: N818 (it is no error of the program)
    """A rule that does not hold: what was seen."""


class Remark(Exception):  # noqa: N818
    """Something that is allowed, and worth knowing."""


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[T]):
    """One thing that must hold.

    Attributes:
        name: a few words with hyphens.
        why: what goes wrong on a benchmark where it does not hold.
        remedy: what to do.
        check: raises where it does not hold.
    """

    name: str
    why: str
    remedy: str
    check: Callable[[T], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How one rule came out, for one subject."""

    subject: str
    rule: str
    verdict: Verdict
    seen: str = ""
    why: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dict(vars(self))


def rule(name: str, *, why: str, remedy: str) -> Callable[[Callable[[T], None]], Rule[T]]:
    """Makes a rule of a function."""

    def make(check: Callable[[T], None]) -> Rule[T]:
        return Rule(name=name, why=why, remedy=remedy, check=check)

    return make


def findings(subject: str, trial: T, rules: Sequence[Rule[T]]) -> Iterator[Finding]:
    """How every rule comes out, one after the other."""
    for each in rules:
        verdict, seen = outcome(each, trial)
        told = {"why": each.why, "remedy": each.remedy} if verdict != "pass" else {}
        yield Finding(subject=subject, rule=each.name, verdict=verdict, seen=seen, **told)


def outcome(rule: Rule[T], trial: T) -> tuple[Verdict, str]:
    """The verdict on one rule, and what was seen."""
    try:
        rule.check(trial)
    except Violation as violation:
        return "fail", str(violation)
    except Remark as remark:
        return "note", str(remark)
    except Exception as error:  # a stranger's code may raise anything
        lines = "".join(traceback.format_exception(error)).strip().splitlines()[-_LINES:]
        return "fail", f"{type(error).__name__}: {error}\n" + "\n".join(lines)
    return "pass", ""
