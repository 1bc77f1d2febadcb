"""Attacks and data sets by name: our own, and those that plugins add for the rest of a process.

A stranger's code is not versioned by us, so the hash of what a plugin adds is part of what is built
with it: an edited trigger makes another victim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Generic, TypeVar

from attacks import ALL, Attack, Material
from attacks import MATERIALS as OWN_MATERIALS
from zoo.errors import UserError

Thing = TypeVar("Thing")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where something that a plugin adds comes from."""

    origin: str  # "file:NAME.py", "module:NAME" or "entry-point:PACKAGE"
    place: str  # the file or module itself: two files may be called the same
    code_sha256: str


class Names(Generic[Thing]):
    """Things by name, our own first.

    Args:
        kind: what they are, for messages.
        own: the built-in ones; their names cannot be taken.
    """

    def __init__(self, kind: str, own: Mapping[str, Thing]) -> None:
        self._kind = kind
        self._own: Final = dict(own)
        self._added: dict[str, tuple[Thing, Source]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._added

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._added

    def add(self, name: str, thing: Thing, source: Source) -> None:
        """Adds (or, from the same place, replaces) something by name.

        Raises:
            UserError: another place has the name already.
        """
        taken = self._added[name][1] if name in self._added else None
        if name in self._own or (taken is not None and taken.place != source.place):
            other = "built-in" if taken is None else taken.origin
            raise UserError(
                f"two {self._kind}s are called {name!r}: one from {other}, one from "
                f"{source.origin}. Rename one of them"
            )
        self._added[name] = (thing, source)

    def find(self, name: str) -> Thing:
        """Something by name.

        Raises:
            UserError: there is none; with what is known.
        """
        if name in self._own:
            return self._own[name]
        if name in self._added:
            return self._added[name][0]
        close = get_close_matches(name, self, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"unknown {self._kind} {name!r}.{hint} Known: {', '.join(self)}. One of a plugin is "
            "known with --plugin FILE.py"
        )

    def source(self, name: str) -> Source | None:
        """The plugin that something comes from, None where it is our own."""
        return self._added[name][1] if name in self._added else None

    def forget(self) -> None:
        """Forgets what plugins have added."""
        self._added.clear()


ATTACKS: Final[Names[type[Attack]]] = Names("attack", {a.name: a for a in ALL})
MATERIALS: Final[Names[type[Material]]] = Names("material", {m.name: m for m in OWN_MATERIALS})


def code_of(names: Names[Thing], name: str) -> dict[str, str]:
    """What a plugin's thing adds to the recipe of what is built with it; nothing for our own."""
    source = names.source(name)
    return {} if source is None else {"code": source.code_sha256}
