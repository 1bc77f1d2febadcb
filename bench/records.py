"""The record: one JSON file per cell, the only truth that tables are made from.

A record is written once, atomically, and carries the SHA-256 of its own payload, so that a copied
or edited file is noticed. Reading needs no torch: the leaderboard imports nothing else of ours.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from bench.metrics import Attacked as Attacked
from bench.metrics import Metrics as Metrics
from bench.metrics import RobustAccuracy as RobustAccuracy
from bench.metrics import Robustness as Robustness
from bench.metrics import checked_metrics as checked_metrics
from bench.metrics import metrics_from_dict as metrics_from_dict
from bench.metrics import stored
from bench.specs import bare
from zoo.files import MAX_JSON as MAX_JSON
from zoo.files import canonical as canonical
from zoo.files import digest as digest
from zoo.files import parse_json
from zoo.files import read_json as read_json
from zoo.files import read_plain as read_plain
from zoo.files import read_tail as read_tail
from zoo.files import slug as slug
from zoo.files import write_atomic as write_atomic

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA: Final = 1
MAX_BYTES: Final = 4 * 2**20  # of a record's file; one with a long curve has 20,000
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ODD: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal would act upon
_COLON_FIRST: Final = re.compile(rb'\n *": ')  # a string in a list, or a key, that begins so
_LONGEST: Final = 1000  # letters of a name
_HUGE: Final = 1e300  # further on, sums and squares are no numbers any more

Status = Literal[
    "ok",
    "not-applicable",
    "not-detected",
    "diverged",
    "timeout",
    "out-of-memory",
    "killed",
    "error",
    "import-error",
    "interrupted",
]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
# A repaired (or deliberately untouched) model came back and was evaluated.
EVALUATED: Final[frozenset[Status]] = frozenset({"ok", "not-detected"})
# Something that should have worked did not: exit code 3, and scored as the undefended model.
FAILED: Final[frozenset[Status]] = frozenset(STATUSES) - EVALUATED - {"not-applicable"}


class RecordError(ValueError):
    """A record file that cannot be read: what is wrong, and what to do."""


@stored
@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was run: one (victim, defense with hyper-parameters, budget, defense seed).

    A clean twin goes through every defense as well; its cells have ``attack == "none"``, no
    target, and ``twin`` is its own hash.
    """

    dataset: str
    arch: str  # "small_vgg", or "small_vgg*0.5" with a width factor
    attack: str  # "badnets", or "badnets[pattern=tile, size=5]" with non-default parameters
    label_rule: str  # "all-to-one" | "all-to-all" | "clean-label" | "none"
    poison_rate: float
    victim_seed: int
    target: int | None
    twin: str  # hash of the clean twin's weights
    defense: str  # "ibau", or "ibau[mode=repository]": the name of a row on the board
    params: dict[str, Any]  # every hyper-parameter, defaults included
    budget: str  # "0", "1", "1t", "100", "2500", "20pc", "unlabeled", "ood"; "poisoned-train"
    defense_seed: int
    needs: str = "nothing"  # what the defense declared; "nothing" stands in every budget column
    oracle: bool = False  # knows or chooses by what no defender has
    swept: bool = False  # made for a sweep only, not asked for by name: stands on no board
    panel: str = ""  # "adversarial": has its robust accuracy measured, stands on that panel alone
    origin: str = "built-in"  # "built-in", "entry-point:PACKAGE" or "file:NAME.py"
    paper: str = ""

    @property
    def setting(self) -> str:
        """The unit of statistical inference; seeds are replicates nested in it."""
        return f"{self.dataset} {self.arch} {self.attack} {self.label_rule} {self.poison_rate:g}"


@stored
@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the repair took; evaluation is not counted."""

    seconds: float
    images_forward: int  # machine-independent: images that went through the victim's forward pass
    images_backward: int
    peak_rss: int  # bytes
    peak_gpu: int = 0  # bytes


@stored
@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one cell (schema 1)."""

    key: str
    status: Status
    cell: Cell
    inputs: dict[str, Any]  # what the key is the hash of
    before: Metrics | None
    after: Metrics | None
    twin: Metrics | None  # the clean twin under the same trigger, undefended
    score: float | None  # 0..100, see zoo.evaluate.score; None for a twin's cell
    der: float | None
    cost: Cost | None
    data_touched: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, int | float | None]] = field(default_factory=list)
    # What a detector saw: statistic, values and index per class, threshold, flagged classes, and
    # "triggers", the name of a picture beside the record (one tile per class).
    finding: dict[str, Any] | None = None
    robust: Robustness | None = None  # of cells on the panel "adversarial"
    env: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None  # {"type", "message", "traceback"}
    started: str = ""
    ended: str = ""
    schema: int = SCHEMA
    payload_sha256: str = ""


def path_of(root: Path, record: Record) -> Path:
    """``records/<defense>/<key[:2]>/<key>.json``: below the root, whatever the record says.

    Raises:
        RecordError: its key is no key.
    """
    if not _KEY.fullmatch(record.key):
        raise RecordError(f"expected a key of 64 hexadecimal digits, got {record.key!r:.100}")
    defense = slug(bare(record.cell.defense))
    return root / "records" / defense / record.key[:2] / f"{record.key}.json"


def write(root: Path, record: Record, log_tail: str = "", picture: bytes = b"") -> Path:
    """Stores a record (beside it, the tail of the cell's log and a PNG); returns its path."""
    path = path_of(root, record)
    if log_tail:
        write_atomic(path.with_suffix(".log"), log_tail)
    if picture:
        write_atomic(path.with_suffix(".png"), picture)
    write_atomic(path, text_of(record))
    return path


def text_of(record: Record) -> str:
    """A record as its file holds it, with the digest of its payload."""
    payload = _encodable(dataclasses.asdict(record))
    payload.pop("payload_sha256")
    payload["payload_sha256"] = digest(payload)
    return json.dumps(payload, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _encodable(payload: dict[str, Any]) -> dict[str, Any]:
    """Without lone surrogates, which a plugin's message may hold, but no strict parser takes."""
    text = json.dumps(payload, ensure_ascii=False)
    found: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return found


def read(path: Path) -> Record:
    """Reads one record.

    Raises:
        RecordError: not JSON, another schema, a field missing or unknown, edited after writing, or
            nothing that this program writes: a link, names and numbers that are none.
    """
    try:
        return parse(read_plain(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"cannot read record {path.name}: {error}. Delete the file and run again"
        ) from error


def parse(raw: bytes) -> Record:
    """A record from the bytes of its file.

    Raises:
        RecordError: as for :func:`read`.
        ValueError: not JSON.
    """
    from pydantic import ValidationError

    record, fault = None, ""
    try:
        record = _reader().validate_json(raw, strict=True)
        if record.schema == SCHEMA and digest_of_text(raw) == record.payload_sha256:
            check(record)
            return record
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    # Rarely needed, so slow and exact: a file of another hand's formatting, or one with a fault.
    payload = parse_json(raw)
    if not isinstance(payload, dict):
        raise RecordError(f"expected a JSON object, got {type(payload).__name__}")
    if payload.get("schema") != SCHEMA:
        raise RecordError(
            f"expected schema {SCHEMA}, got {payload.get('schema')!r}; "
            "it was written by another version of Unbackdoor"
        )
    if payload.pop("payload_sha256", "") != digest(payload):
        raise RecordError("its content does not match its payload_sha256: edited or damaged")
    if record is None:
        raise RecordError(fault)
    check(record)
    return record


def check(record: Record) -> None:
    """Refuses what the types of the fields let pass, and no other program may rely on.

    Names go into file names, and onto terminals and pages; numbers into sums.

    Raises:
        RecordError: a key or name that is none, or a number that is not finite.
    """
    cell = record.cell
    if not _KEY.fullmatch(record.key):
        raise RecordError(f"expected a key of 64 hexadecimal digits, got {record.key!r:.100}")
    names = (cell.dataset, cell.arch, cell.attack, cell.label_rule, cell.defense, cell.budget)
    if any(len(name) > _LONGEST or _ODD.search(name) for name in (*names, cell.origin, cell.paper)):
        raise RecordError("a name in its cell is too long or holds control characters")
    free = (record.inputs, record.data_touched, record.finding, record.env)
    if not all(map(_finite, (cell.params, *free, record.git, record.error))):
        raise RecordError("it holds a number that is out of range")


def _finite(value: object) -> bool:
    """Whether all numbers in a JSON value are of a size that can be calculated with."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, int | float) or -_HUGE < value < _HUGE


@cache
def _reader() -> TypeAdapter[Record]:
    """Parses and checks a record in one pass; a leaderboard reads a hundred thousand of them."""
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


def digest_of_text(raw: bytes) -> str:
    """What ``digest`` gives for the payload in a file that ``write`` has laid out.

    A line break is never inside a string of JSON, so taking out line breaks, indentation and the
    blank after each key leaves canonical JSON. A string can hold that blank after an escaped quote,
    or begin with a colon and that blank, and a key can end in a backslash; such a file has no
    digest here.
    """
    if b'\\": ' in raw or b'": ": ' in raw or _COLON_FIRST.search(raw):
        return ""
    flat = b"".join(map(bytes.lstrip, raw.split(b"\n"))).replace(b'": ', b'":')
    before, name, rest = flat.partition(b'"payload_sha256":"')
    return hashlib.sha256(before + rest[66:]).hexdigest() if name else ""


def scan(root: Path) -> Iterator[Path]:
    """All record files under a root, in a fixed order."""
    # Not glob, which takes five times as long to sort paths as this does to sort names.
    for defense in _folders(root / "records"):
        for part in _folders(defense):
            if len(part.name) == 2:
                names = sorted(name for name in os.listdir(part) if name.endswith(".json"))
                yield from (part / name for name in names)


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [path / name for name in sorted(os.listdir(path)) if (path / name).is_dir()]


def read_all(root: Path) -> tuple[list[Record], list[str]]:
    """All readable records, and one message for each file that is not."""
    records: list[Record] = []
    problems: list[str] = []
    with collector_paused():
        for path in scan(root):
            try:
                records.append(read(path))
            except RecordError as error:
                problems.append(str(error))
    return records, problems


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps the garbage collector from going through all records again and again.

    They are millions of objects, and none of them is garbage: it would take half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # they are old from now on: the next young collection leaves them alone
        gc.unfreeze()
        if enabled:
            gc.enable()
