"""A hash of what a piece of code does, blind to comments, docstrings, blank lines and paths.

It covers the file itself and, transitively, the modules of its own package (of a loose file: of
its own folder) and of ours that it imports: editing a shared helper makes every defense that uses
it stale, editing a docstring none.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Final

# Our own code that a defense can reach; their parent folder is where the packages are installed.
_OWN_PACKAGES: Final = ("defenses", "zoo")
_BASE: Final = Path(__file__).resolve().parent.parent
SHORT: Final = 12  # hex digits of the hash of one file, which is in no key
_LAYOUT: Final = {tokenize.NL, tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER}


@functools.lru_cache(maxsize=256)  # most defenses share most of their modules
def code_tokens(source: str) -> str:
    """The token stream without comments, docstrings and blank lines.

    Raises:
        SyntaxError: the source does not parse.
    """
    docstrings = _docstring_lines(source)
    kept = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _LAYOUT:
            continue
        if token.type == tokenize.STRING and token.start in docstrings:
            continue
        # Indentation matters as structure, not as a number of spaces.
        text = "" if token.type in (tokenize.INDENT, tokenize.DEDENT) else token.string
        kept.append(f"{token.type}:{text}" if text != "\n" else "\n")
    return "\x1f".join(kept)


def _docstring_lines(source: str) -> set[tuple[int, int]]:
    """(line, column) where docstrings start."""
    places = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            places.add((first.lineno, first.col_offset))
    return places


@functools.cache
def code_hash(path: Path) -> str:
    """SHA-256 over the code of a file and of all own modules it imports, directly or not.

    Raises:
        SyntaxError: one of the files does not parse.
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(_closure(path.resolve()), key=lambda p: (p.parent.name, p.name)):
        digest.update(f"{file.parent.name}/{file.name}\x00".encode() if file != path else b"\x00")
        digest.update(code_tokens(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def file_of(function: Callable[..., object]) -> Path:
    """Where a function is written; not where ``torch.no_grad()`` is, if that is around it."""
    return Path(inspect.unwrap(function).__code__.co_filename)


@functools.cache
def file_hashes(path: Path) -> dict[str, str]:
    """A short hash of each file that :func:`code_hash` covers, by name: which of them has changed.

    Raises:
        SyntaxError: one of the files does not parse.
        OSError: one cannot be read.
    """
    path = path.resolve()
    own = any(path.is_relative_to(_BASE / package) for package in _OWN_PACKAGES)
    folder = _BASE if own else _home(path)
    return {
        file.relative_to(folder if file.is_relative_to(folder) else _BASE).as_posix(): _short(file)
        for file in sorted(_closure(path))
    }


def _short(file: Path) -> str:
    tokens = code_tokens(file.read_text(encoding="utf-8"))
    return hashlib.sha256(tokens.encode()).hexdigest()[:SHORT]


def companions(path: Path) -> list[Path]:
    """A loose file, and the files beside it that it imports, directly or not."""
    return sorted(file for file in _closure(path.resolve()) if file.parent == path.resolve().parent)


def _closure(path: Path) -> set[Path]:
    """The file and every own module reachable through its imports."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        todo.extend(_imports(file))
    return seen


def _imports(file: Path) -> list[Path]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = "." * node.level + (node.module or "")
            dot = "." if node.module else ""
            names = [stem, *(f"{stem}{dot}{alias.name}" for alias in node.names)]
        parents = {name[:place] for name in names for place, c in enumerate(name) if c == "."}
        for name in sorted({*names, *parents}):
            if (module := _module_file(name, file)) is not None:
                found.append(module)
    return found


def _home(file: Path) -> Path:
    """The folder of a loose file; the one that a file's top-level package lies in."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def _module_file(name: str, importer: Path) -> Path | None:
    """The source file of a module that counts: our own, or one of a plugin's folder or package.

    The ``__init__`` of the package that the importer itself is in does not count, nor do ours: they
    list what there is, and adding a defense to the list must not make the others stale. That of
    another package beside a plugin does, with what it imports.
    """
    dotless = name.lstrip(".")
    level, (head, *rest) = len(name) - len(dotless), dotless.split(".")
    start: Path | None = importer.parent
    if level:
        start = importer.parents[min(level, len(importer.parents)) - 1]
    elif head in _OWN_PACKAGES:
        start = _BASE if rest else None
    elif importer.is_relative_to(_BASE) and importer.parent.name in _OWN_PACKAGES:
        start = None  # our own modules import siblings by their full name
    elif (home := _home(importer)) / head in importer.parents:
        start = home
    if start is None or not head:
        return None
    place = start.joinpath(head, *rest)
    if (candidate := place.with_suffix(".py")).is_file():
        return candidate
    ours = any(place.is_relative_to(_BASE / package) for package in _OWN_PACKAGES)
    package = place / "__init__.py"
    return package if package.is_file() and not ours and place not in importer.parents else None
