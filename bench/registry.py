"""Defenses and base-set builders by name: built in, from installed packages, and from loose files.

Workers get references (a module, or a file with its hash), never objects. A name that two origins
claim is an error; a plugin that cannot be imported becomes a row on the board, never a silence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.codehash import code_hash
from bench.plugins import load_file
from defenses import ALL, BASE_SETS, BaseSet, Defense
from zoo.errors import UserError
from zoo.files import digest

GROUP: Final = "unbackdoor.defenses"
CONTROLS: Final = ("identity", "scramble", "ft")
_SPEC: Final = re.compile(r"\s*([A-Za-z0-9_.:@/-]+)\s*(?:\[(.*)\])?\s*")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where a child process finds a defense function."""

    attribute: str
    module: str = ""  # an importable module, or
    file: str = ""  # a loose file,
    file_sha256: str = ""  # which must still have this content

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return dict(vars(self))


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


class Registry:
    """All defenses of one run."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.bases: dict[str, BaseEntry] = {}
        self.broken: dict[str, Broken] = {}
        for built_in in ALL:
            self._add(built_in, "built-in", _module_reference(built_in))
        for builder in BASE_SETS:
            self._add_base(builder, "built-in", _module_reference(builder))

    def add_entry_points(self) -> None:
        """Adds the defenses of installed packages (group ``unbackdoor.defenses``)."""
        for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
            origin = f"entry-point:{point.dist.name if point.dist else point.value}"
            try:
                loaded = point.load()
            except Exception as error:  # a stranger's code may raise anything
                self._add_broken(point.name, origin, error, digest(point.value))
                continue
            self._add_marked(loaded, origin, _entry_point_reference(point), point.name)

    def add_file(self, path: Path) -> None:
        """Adds every defense that a loose file defines.

        Raises:
            UserError: the file is missing, defines none, or a name is taken.
        """
        if not path.is_file():
            raise UserError(f"--plugin {path}: there is no such file")
        origin = f"file:{path.name}"
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            module = load_file(path)
        except Exception as error:  # a stranger's code may raise anything
            self._add_broken(path.stem.replace("_", "-"), origin, error, sha)
            return
        found = [
            (name, value)
            for name, value in vars(module).items()
            if isinstance(_mark_of(value), Defense | BaseSet)
            and getattr(value, "__module__", "") == module.__name__
        ]
        if not found:
            raise UserError(
                f"--plugin {path}: expected at least one function marked with @defense(...) or "
                "@base_set(...), got none. See docs/contributing.md for a working example"
            )
        for attribute, function in found:
            reference = Reference(attribute=attribute, file=str(path.resolve()), file_sha256=sha)
            self._add_mark(_mark_of(function), origin, reference)

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

    def plugins(self) -> list[str]:
        """Names of all defenses that are not built in."""
        return [name for name, entry in self.entries.items() if entry.origin != "built-in"]

    def _add_marked(
        self, loaded: object, origin: str, reference: Reference, point_name: str
    ) -> None:
        marked = _mark_of(loaded)
        if isinstance(marked, Defense | BaseSet):
            self._add_mark(marked, origin, reference)
        else:
            error = TypeError("it is not a function marked with @defense(...)")
            self._add_broken(point_name, origin, error, digest(point_name))

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
            code_sha256=code_hash(_source_of(builder)),
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
            code_sha256=code_hash(_source_of(defense)),
        )

    def _add_broken(self, name: str, origin: str, error: Exception, sha: str) -> None:
        self.broken[name] = Broken(
            name=name,
            origin=origin,
            error_type=type(error).__name__,
            message=str(error),
            code_sha256=sha,
        )


Registered = TypeVar("Registered", Entry, BaseEntry)


def _known(kind: str, name: str, found: dict[str, Registered]) -> Registered:
    if name in found:
        return found[name]
    close = get_close_matches(name, found, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(found)}")


def _mark_of(function: object) -> Any:  # noqa: ANN401 (a stranger's object)
    """The mark that a decorator of :mod:`defenses` has left, None where there is none."""
    return getattr(function, "defense", None) or getattr(function, "base_set", None)


def split_base(text: str) -> tuple[str, str]:
    """``ibau[a=1]@fred[b=2]`` to the texts before and after the @; the second may be empty."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "@" and not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def split_params(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyper-parameters of the defense, and those of its base set without their prefix."""
    own = {key: value for key, value in params.items() if "." not in key}
    base = {key.partition(".")[2]: value for key, value in params.items() if "." in key}
    return own, base


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """``name[a=1, b=x]`` to a name and values (numbers and true/false are recognised).

    Raises:
        UserError: not of that form.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise UserError(f"expected NAME or NAME[key=value, ...], got {text!r}")
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        key, sign, value = item.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise UserError(f"expected key=value in {text!r}, got {item!r}")
        values[key.strip()] = _scalar(value.strip())
    return match[1], values


def format_spec(name: str, overrides: dict[str, Any]) -> str:
    """The inverse of :func:`parse_spec`, in sorted order."""
    inner = ", ".join(f"{key}={overrides[key]}" for key in sorted(overrides))
    return f"{name}[{inner}]" if inner else name


def _scalar(text: str) -> Any:  # noqa: ANN401 (a JSON scalar)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _module_reference(defense: Defense | BaseSet) -> Reference:
    return Reference(module=defense.run.__module__, attribute=defense.run.__name__)


def _entry_point_reference(point: EntryPoint) -> Reference:
    return Reference(module=point.module, attribute=point.attr)


def _source_of(defense: Defense | BaseSet) -> Path:
    return Path(defense.run.__code__.co_filename)
