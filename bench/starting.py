"""`bench new`: a plugin to start from."""

from __future__ import annotations

import keyword
import re
import string
import sys
from importlib.resources import files
from pathlib import Path

import attacks
import defenses
from bench.app import OK
from zoo.errors import UserError
from zoo.sets import DATASETS

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def new(what: str, name: str) -> int:
    """Writes ``name.py`` (with _ for -) into the current folder.

    Raises:
        UserError: not a name, one that a built-in thing has, or the file is there already.
    """
    function = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(function):
        raise UserError(f"expected a name like 'my-{what}' (a-z, 0-9, - and _), got {name!r}")
    if name in _built_in(what):
        raise UserError(f"{name!r} is a built-in {what}: choose another name, like 'my-{name}'")
    path = Path(f"{function}.py")
    text = source_of(what, name)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} is there already; choose another name") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    print(path)
    then = f"bench run --plugin {path}"
    print(f"next: bench check {path}, then: {then}; see docs/adding-a-defense.md", file=sys.stderr)
    return OK


def _built_in(what: str) -> set[str]:
    """The names that a plugin of this kind cannot have."""
    if what == "dataset":
        return set(DATASETS)
    return {thing.name for thing in (attacks.ALL if what == "attack" else defenses.ALL)}


def source_of(what: str, name: str) -> str:
    """The text of a plugin of this kind and name."""
    template = files("bench").joinpath("templates", f"{what}.py.txt").read_text(encoding="utf-8")
    function = name.replace("-", "_")
    return string.Template(template).substitute(
        name=name,
        file=f"{function}.py",
        function=function,
        class_name="".join(part.capitalize() for part in function.split("_")),
    )
