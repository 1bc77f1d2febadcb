"""Defenses and base-set builders by name: built in, from installed packages, and from loose files.

Workers get references (a module, or a file with its hash), never objects. A name that two origins
claim is an error; a plugin that cannot be imported becomes a row on the board, never a silence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.codehash import code_hash, file_of
from bench.plugins import Reference
from bench.specs import format_spec, parse_spec, split_base, split_params
from defenses import ALL, BASE_SETS, BaseSet, Defense
from zoo.adoption import Source
from zoo.errors import UserError
from zoo.files import digest
from zoo.plugins import Found, find, found_as

GROUP: Final = "unbackdoor.defenses"
# Entry-point groups: defenses and base sets, attacks, data sets.
GROUPS: Final = (GROUP, "unbackdoor.attacks", "unbackdoor.datasets")
CONTROLS: Final = ("identity", "scramble", "ft")


@dataclass(frozen=True, kw_only=True)
class BaseEntry:
    """A registered base-set builder, with where it came from."""

    builder: BaseSet
    origin: str
    reference: Reference
    code_sha256: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered defense, with where it came from; perhaps on a base set, as in ``ibau@fred``.

    The hyper-parameters of the base set are among the defense's as ``fred.steps``.
    """

    defense: Defense
    origin: str  # "built-in", "entry-point:PACKAGE" or "file:NAME.py"
    reference: Reference
    code_sha256: str
    base: BaseEntry | None = None

    @property
    def name(self) -> str:
        """``ibau`` or ``ibau@fred``."""
        return self.label({})

    @property
    def needs(self) -> str:
        """What a budget must have: on a base set nothing, and what there is may be used."""
        if self.base is None:
            return self.defense.needs
        return "optional" if self.base.builder.booster else "nothing"

    def label(self, overrides: dict[str, Any]) -> str:
        """``ibau[rounds=3]@fred[steps=50]``: what :meth:`Registry.parse` takes apart."""
        own, base = split_params(overrides)
        text = format_spec(self.defense.name, own)
        return text if self.base is None else f"{text}@{format_spec(self.base.builder.name, base)}"

    def resolve(
        self, overrides: dict[str, Any], profile: dict[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """All hyper-parameters: the user's, else the profile's, else the defaults.

        Raises:
            ValueError: an unknown name, or a value of another type.
        """
        own, base = split_params(overrides)
        given = profile or {}
        params = self.defense.resolve({**given.get(self.defense.name, {}), **own})
        if self.base is None:
            return params
        builder = self.base.builder
        found = builder.resolve({**given.get(builder.name, {}), **base})
        return params | {f"{builder.name}.{key}": value for key, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A plugin that cannot be imported."""

    name: str
    origin: str
    error_type: str
    message: str
    code_sha256: str

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return f"cannot be imported: {self.error_type}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Addition:
    """An attack, a material or a data set of a plugin, and where it came from."""

    kind: str  # "attack", "material" or "data set"
    name: str
    reference: Reference
    origin: str


class Registry:
    """All defenses of one run, and what its plugins add to the zoo."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.bases: dict[str, BaseEntry] = {}
        self.broken: dict[str, Broken] = {}
        self.additions: list[Addition] = []
        for built_in in ALL:
            self._add(built_in, "built-in", _module_reference(built_in))
        for builder in BASE_SETS:
            self._add_base(builder, "built-in", _module_reference(builder))

    @classmethod
    def with_plugins(cls, sources: Sequence[str]) -> Registry:
        """Everything: built in, of installed packages, and of loose files or modules by name.

        Raises:
            UserError: as :meth:`add`.
        """
        registry = cls()
        registry.add_entry_points()
        for source in sources:
            registry.add(source)
        return registry

    def add_entry_points(self) -> None:
        """Adds what installed packages offer in our groups.

        Raises:
            UserError: a name is taken.
        """
        for group in GROUPS:
            for point in sorted(entry_points(group=group), key=lambda p: p.name):
                self._add_entry_point(point)

    def add(self, source: str) -> None:
        """Adds everything that a loose file (``FILE.py``) or a module (``package.module``) defines.

        Raises:
            UserError: it is missing, defines nothing of ours, or a name is taken.
        """
        if source.endswith(".py") or "/" in source or os.sep in source:
            self.add_file(Path(source))
            return
        if not _is_there(source):
            file = Path(f"{source}.py")
            hint = f". Did you mean --plugin {file}?" if file.is_file() else ""
            raise UserError(f"--plugin {source}: there is no such module{hint}")
        reference = Reference(module=source)
        self._add_source(f"--plugin {source}", f"module:{source}", source, reference)

    def add_file(self, path: Path) -> None:
        """Adds everything that a loose file defines.

        Raises:
            UserError: as :meth:`add`.
        """
        if not path.is_file():
            raise UserError(f"--plugin {path}: there is no such file")
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        reference = Reference(file=str(path.resolve()), file_sha256=sha)
        self._add_source(f"--plugin {path}", f"file:{path.name}", path.stem, reference)

    def plugins(self) -> list[str]:
        """Names of all defenses that are not built in."""
        return [name for name, entry in self.entries.items() if entry.origin != "built-in"]

    def loose(self, kind: str) -> list[str]:
        """Names of the attacks or data sets that come from no installed package."""
        mine = (a for a in self.additions if a.kind == kind)
        return [a.name for a in mine if not a.origin.startswith("entry-point:")]

    def zoo_plugins(self) -> list[dict[str, str]]:
        """References of all modules that add to the zoo, each once: builders must import them."""
        unique = {
            (a.reference.module, a.reference.file): {**a.reference.to_dict(), "origin": a.origin}
            for a in self.additions
        }
        return list(unique.values())

    def parse(self, text: str) -> tuple[Entry, dict[str, Any]]:
        """``ibau[rounds=3]@fred[steps=50]`` to an entry and its overridden hyper-parameters.

        Raises:
            UserError: an unknown defense, base set or hyper-parameter, with what is known; a base
                set for a defense that takes no images.
        """
        own, base = split_base(text)
        name, overrides = parse_spec(own)
        entry = _known("defense", name, self.entries)
        if base:
            builder, more = parse_spec(base)
            if entry.defense.needs not in ("images", "labels", "optional"):
                raise UserError(
                    f"{name} takes no images, so it cannot be run on a base set: {text!r}"
                )
            entry = dataclasses.replace(entry, base=_known("base set", builder, self.bases))
            overrides = overrides | {f"{builder}.{key}": value for key, value in more.items()}
        try:
            entry.resolve(overrides)
        except ValueError as error:
            raise UserError(str(error)) from error
        return entry, overrides

    def check_params(self, name: str, given: dict[str, Any]) -> None:
        """What a profile sets for one defense or base set, whether or not the profile runs it.

        Raises:
            UserError: no defense or base set has that name, or not those hyper-parameters.
        """
        if name in self.broken:  # which has a row that says why
            return
        methods: dict[str, Defense | BaseSet] = {k: e.defense for k, e in self.entries.items()}
        methods.update((known, base.builder) for known, base in self.bases.items())
        try:
            _known("defense or base set", name, methods).resolve(given)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _add_entry_point(self, point: EntryPoint) -> None:
        origin = f"entry-point:{point.dist.name if point.dist else point.value}"
        reference = Reference(module=point.module, attribute=point.attr)
        try:
            loaded = point.load()
            mark, found = _mark_of(loaded), found_as(point.attr, loaded)
            if mark is None and found is None:
                raise TypeError(
                    "it is not a function marked with @defense(...), @base_set(...) or "
                    "@dataset(...), and no Attack"
                )
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            self._add_broken(point.name, origin, error, digest(point.value))
            return
        if mark is not None:
            self._add_mark(mark, origin, reference)
        if found is not None:  # with the materials that are defined beside it
            module = sys.modules[point.module]
            beside = [f for f in find(module) if f.kind == "material"]
            for each in dict.fromkeys([found, *beside]):
                self._add_found(each, origin, reference, module)

    def _add_source(self, option: str, origin: str, stem: str, reference: Reference) -> None:
        """Imports a module and adds what it defines."""
        try:
            module = reference.load()
            found = find(module)
        except Exception as error:  # a stranger's code may raise anything
            name = stem.rpartition(".")[2].replace("_", "-")
            self._add_broken(name, origin, error, reference.file_sha256 or digest(stem))
            return
        marks = {
            attribute: mark
            for attribute, value in vars(module).items()
            if (mark := _mark_of(value)) is not None
            and getattr(value, "__module__", "") == module.__name__
        }
        if not marks and not found:
            raise UserError(
                f"{option}: expected at least one function marked with @defense(...), "
                "@base_set(...) or @dataset(...), or one Attack, got none. Start from: "
                "bench new defense NAME"
            )
        for attribute, mark in marks.items():
            self._add_mark(mark, origin, dataclasses.replace(reference, attribute=attribute))
        for each in found:
            self._add_found(each, origin, reference, module)

    def _add_found(
        self, found: Found, origin: str, reference: Reference, module: types.ModuleType
    ) -> None:
        found.adopt(source_of(origin, reference, module))
        whole = dataclasses.replace(reference, attribute="")
        addition = Addition(kind=found.kind, name=found.name, reference=whole, origin=origin)
        self.additions.append(addition)

    def _add_mark(self, mark: Defense | BaseSet, origin: str, reference: Reference) -> None:
        if isinstance(mark, BaseSet):
            self._add_base(mark, origin, reference)
        else:
            self._add(mark, origin, reference)

    def _add_base(self, builder: BaseSet, origin: str, reference: Reference) -> None:
        if (taken := self.bases.get(builder.name)) is not None:
            raise UserError(
                f"two base sets are called {builder.name!r}: one from {taken.origin}, one from "
                f"{origin}. Rename one of them"
            )
        self.bases[builder.name] = BaseEntry(
            builder=builder,
            origin=origin,
            reference=reference,
            code_sha256=code_hash(file_of(builder.run)),
        )

    def _add(self, defense: Defense, origin: str, reference: Reference) -> None:
        if (taken := self.entries.get(defense.name)) is not None:
            raise UserError(
                f"two defenses are called {defense.name!r}: one from {taken.origin}, one from "
                f"{origin}. Rename one of them"
            )
        self.entries[defense.name] = Entry(
            defense=defense,
            origin=origin,
            reference=reference,
            code_sha256=code_hash(file_of(defense.run)),
        )

    def _add_broken(self, name: str, origin: str, error: BaseException, sha: str) -> None:
        if name in self.entries:  # its failures would count as those of the other
            raise UserError(
                f"{origin} cannot be imported ({type(error).__name__}: {error}), and "
                f"{name!r} is the name of a defense from {self.entries[name].origin}. Rename it"
            )
        self.broken[name] = Broken(
            name=name,
            origin=origin,
            error_type=type(error).__name__,
            message=str(error),
            code_sha256=sha,
        )


def adopt(plugin: dict[str, str]) -> None:
    """Makes a plugin's attacks, materials and data sets known in this process.

    Args:
        plugin: one of :meth:`Registry.zoo_plugins`.

    Raises:
        UserError: it cannot be imported here.
    """
    origin = plugin["origin"]
    reference = Reference(**{key: plugin[key] for key in plugin if key != "origin"})
    try:
        module = reference.load()
        found = find(module)
    except Exception as error:  # a stranger's code may raise anything
        raise UserError(f"{origin}: {type(error).__name__}: {error}") from error
    source = source_of(origin, reference, module)
    for each in found:
        each.adopt(source)


def source_of(origin: str, reference: Reference, module: types.ModuleType) -> Source:
    """Where a plugin's things come from."""
    place = reference.file or reference.module
    return Source(origin=origin, place=place, code_sha256=code_hash(Path(str(module.__file__))))


Registered = TypeVar("Registered")


def _known(kind: str, name: str, found: dict[str, Registered]) -> Registered:
    if name in found:
        return found[name]
    close = get_close_matches(name, found, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(found)}")


def _is_there(module: str) -> bool:
    """Whether a module can be found; what its packages raise when imported is told later."""
    try:
        return bool(module) and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        return error.name is None or not f"{module}.".startswith(f"{error.name}.")
    except (Exception, SystemExit):  # a stranger's package may raise anything
        return True


def _mark_of(function: object) -> Defense | BaseSet | None:
    """The mark that a decorator of :mod:`defenses` has left, None where there is none."""
    mark = getattr(function, "defense", None) or getattr(function, "base_set", None)
    return mark if isinstance(mark, Defense | BaseSet) else None


def _module_reference(defense: Defense | BaseSet) -> Reference:
    return Reference(module=defense.run.__module__, attribute=defense.run.__name__)
