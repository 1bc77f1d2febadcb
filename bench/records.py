"""The record: one JSON file per cell, the only truth that tables are made from.

A record is written once, atomically, and carries the SHA-256 of its own payload, so that a copied
or edited file is noticed. Reading needs no torch: the leaderboard imports nothing else of ours.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from zoo.files import canonical as canonical
from zoo.files import digest as digest
from zoo.files import slug as slug
from zoo.files import write_atomic as write_atomic

SCHEMA: Final = 1

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


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """How a model answers triggered images at one trigger strength; fractions in [0, 1]."""

    asr: float  # y != t predicted t (all-to-all: all images, predicted (y + 1) mod K)
    ra: float  # the same images, still predicted y
    asr_conditional: float | None  # among those that the model gets right when clean (DHBE)
    asr_including_target: float  # over all images, those of class t too (I-BAU)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A model on the evaluation split: clean accuracy, and one entry per trigger strength."""

    acc: float
    images: int  # size of the evaluation split
    strengths: dict[str, Attacked] = field(default_factory=dict)  # "x1", "x4", "x9" or "x1".."x3"

    @property
    def asr(self) -> float | None:
        """ASR at the strength used in training, None for a model without a trigger."""
        first = self.strengths.get("x1")
        return None if first is None else first.asr

    @property
    def ra(self) -> float | None:
        """Recovered accuracy at the strength used in training."""
        first = self.strengths.get("x1")
        return None if first is None else first.ra

    @property
    def worst_asr(self) -> float | None:
        """The highest ASR over all strengths."""
        return max((s.asr for s in self.strengths.values()), default=None)


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """A model on some attacked evaluation images: the share that no attack gets misclassified.

    By the largest change of a pixel value, in grey levels of 255; fractions in [0, 1].
    """

    acc: float  # the same images, not attacked
    pgd: dict[str, float]  # "8", "10", "16"
    autoattack: dict[str, float]  # "8", "10"; fewer images; empty where it was not run


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Robust accuracy of the victim and of what a defense made of it."""

    images: int  # attacked by PGD, class-stratified, the same for every defense
    autoattack_images: int  # of those, attacked by AutoAttack, too; 0 where it was not run
    autoattack: str  # "pyautoattack 0.2.0"; empty where it was not run
    before: RobustAccuracy
    after: RobustAccuracy | None  # None where no model came back


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the repair took; evaluation is not counted."""

    seconds: float
    images_forward: int  # machine-independent: images that went through the victim's forward pass
    images_backward: int
    peak_rss: int  # bytes
    peak_gpu: int = 0  # bytes


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
    curve: list[dict[str, Any]] = field(default_factory=list)
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
    """``records/<defense>/<key[:2]>/<key>.json``."""
    defense = slug(record.cell.defense.split("[")[0])
    return root / "records" / defense / record.key[:2] / f"{record.key}.json"


def write(root: Path, record: Record, log_tail: str = "", picture: bytes = b"") -> Path:
    """Stores a record (beside it, the tail of the cell's log and a PNG); returns its path."""
    payload = dataclasses.asdict(record)
    payload.pop("payload_sha256")
    payload["payload_sha256"] = digest(payload)
    path = path_of(root, record)
    if log_tail:
        write_atomic(path.with_suffix(".log"), log_tail)
    if picture:
        write_atomic(path.with_suffix(".png"), picture)
    write_atomic(path, json.dumps(payload, sort_keys=True, indent=1, allow_nan=False) + "\n")
    return path


def read(path: Path) -> Record:
    """Reads one record.

    Raises:
        RecordError: not JSON, another schema, a field missing or unknown, or edited after writing.
    """
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(payload, dict):
            raise RecordError(f"expected a JSON object, got {type(payload).__name__}")
        if payload.get("schema") != SCHEMA:
            raise RecordError(
                f"expected schema {SCHEMA}, got {payload.get('schema')!r}; "
                "it was written by another version of Unbackdoor"
            )
        stated = payload.pop("payload_sha256", "")
        if digest(payload) != stated:
            raise RecordError("its content does not match its payload_sha256: edited or damaged")
        return from_dict({**payload, "payload_sha256": stated})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordError(
            f"cannot read record {path.name}: {error}. Delete the file and run again"
        ) from error


def from_dict(payload: Mapping[str, Any]) -> Record:
    """Builds a record from its JSON form."""
    fields = dict(payload)
    if fields["status"] not in STATUSES:
        raise RecordError(f"unknown status {fields['status']!r}")
    fields["cell"] = Cell(**fields["cell"])
    for name in ("before", "after", "twin"):
        fields[name] = metrics_from_dict(fields[name])
    fields["cost"] = Cost(**fields["cost"]) if fields["cost"] else None
    fields["robust"] = robustness_from_dict(fields.get("robust"))
    return Record(**fields)


def robustness_from_dict(payload: Mapping[str, Any] | None) -> Robustness | None:
    """Builds a robustness from its JSON form; None stays None."""
    if payload is None:
        return None
    after = payload["after"]
    return Robustness(
        **{
            **payload,
            "before": RobustAccuracy(**payload["before"]),
            "after": None if after is None else RobustAccuracy(**after),
        }
    )


def metrics_from_dict(payload: Mapping[str, Any] | None) -> Metrics | None:
    """Builds metrics from their JSON form; None stays None."""
    if payload is None:
        return None
    strengths = {name: Attacked(**entry) for name, entry in payload["strengths"].items()}
    return Metrics(acc=payload["acc"], images=payload["images"], strengths=strengths)


def scan(root: Path) -> Iterator[Path]:
    """All record files under a root, in a fixed order."""
    yield from sorted((root / "records").glob("*/??/*.json"))


def read_all(root: Path) -> tuple[list[Record], list[str]]:
    """All readable records, and one message for each file that is not."""
    records: list[Record] = []
    problems: list[str] = []
    for path in scan(root):
        try:
            records.append(read(path))
        except RecordError as error:
            problems.append(str(error))
    return records, problems
