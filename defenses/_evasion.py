"""Defenses against adversarial examples: what marks them, and so has them measured and shown apart.

A marker of its own, and no field of :class:`defenses.base.Defense`: every defense's key covers the
code of that module, and an addition there would make every record stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from defenses.base import Defense, F, Needs, defense


@dataclass(frozen=True, kw_only=True)
class Robustifier(Defense):
    """A defense against adversarial examples: its robust accuracy is measured, too.

    It stands on a panel of its own, and on no board of backdoor removal.
    """


def robustifier(name: str, *, paper: str, needs: Needs) -> Callable[[F], F]:
    """Marks a function as a defense against adversarial examples; otherwise as ``@defense`` does.

    Raises:
        ValueError: as for :func:`defenses.base.defense`.
    """
    mark_as_defense = defense(name, paper=paper, needs=needs)

    def mark(function: F) -> F:
        marked = mark_as_defense(function)
        entry: Defense = marked.defense  # type: ignore[attr-defined]
        marked.defense = Robustifier(**vars(entry))  # type: ignore[attr-defined]
        return marked

    return mark
