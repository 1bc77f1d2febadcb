"""What a child leaves behind, read as the files of a stranger.

A defense is anybody's code, and may have written what it likes into its folder. Nothing here is
believed before it is checked: no link is followed, nothing is read that is larger than it can
rightly be, and a model is one of the victim's shape or none. What cannot be checked (the cost, the
curve, what a detector says it saw) is the child's own word, and stays text and numbers.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from bench.launcher import Exit
from bench.metrics import stored
from bench.records import Cost, Status
from zoo.files import read_plain
from zoo.models import ArchSpec, Classifier, Norm, build_model, shapes_of
from zoo.tensors import copy_tensors

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_RESULT: Final = 2**20  # bytes of result.json; 200 points of a curve have 20,000
MAX_CANDIDATES: Final = 100  # models that an oracle may leave; each of them is evaluated


Touched = Literal[
    "granted_images", "granted_labels", "granted_classes", "read_images", "read_labels"
]


class HandbackError(Exception):
    """What a child has left is not what it should have left."""


@stored
@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a detector says."""

    statistic: str
    values: list[float]
    index: list[float]
    threshold: float
    flagged: list[int]


@stored
@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What ``result.json`` may say; everything but the status where there is such a thing."""

    status: Status
    error: dict[Literal["type", "message", "traceback"], str] | None = None
    specs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    finding: Finding | None = None
    cost: Cost | None = None
    curve: list[dict[str, int | float | None]] = dataclasses.field(default_factory=list)
    data_touched: dict[Touched, bool | int | str] = dataclasses.field(default_factory=dict)


def read_result(path: Path, ended: Exit, seconds: float) -> dict[str, Any]:
    """What a child says of itself, or why it says nothing (or nothing that can be believed).

    Args:
        path: its ``result.json``.
        ended: how it ended.
        seconds: the limit that it had.
    """
    if path.is_symlink() or path.exists():
        try:
            return _account(read_plain(path, MAX_RESULT))
        except (OSError, ValueError) as error:
            return failed(HandbackError(f"its result.json cannot be used: {error}"))
    if ended.note:
        status, message = "killed", ended.note
    elif ended.timed_out:
        status, message = "timeout", f"stopped after {seconds:g} s"
    elif ended.rc < 0:
        status, message = "killed", f"the process was ended by signal {-ended.rc}"
    else:
        status, message = "error", f"the process left with exit code {ended.rc} and no result"
    return {"status": status, "error": {"type": status, "message": message, "traceback": ""}}


def failed(error: Exception) -> dict[str, Any]:
    """The account of a child whose own cannot be used."""
    why = {"type": type(error).__name__, "message": str(error), "traceback": ""}
    return {"status": "error", "error": why}


def _account(raw: bytes) -> dict[str, Any]:
    """The child's account, as JSON values.

    Raises:
        ValueError: not of the form of :class:`Account`.
    """
    from pydantic import ValidationError

    try:
        account = _reader().validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if account.status != "ok" and account.error is None:
        raise ValueError(f"it says {account.status}, and not why")
    if account.status == "ok" and account.cost is None:
        raise ValueError("it does not say what the repair has cost")
    return dataclasses.asdict(account)


@cache
def _reader() -> TypeAdapter[Account]:
    from pydantic import TypeAdapter

    return TypeAdapter(Account)


def specs_of(result: dict[str, Any], victim: ArchSpec, needs: str) -> list[ArchSpec]:
    """The architectures of the models that a child says it has left, in order.

    Args:
        result: its account, of a child that left a model.
        victim: what they must be like.
        needs: what the defense declared; one that trains anew may choose the normalisation.

    Raises:
        HandbackError: none, too many, or something else.
    """
    told = result["specs"]
    if not 0 < len(told) <= MAX_CANDIDATES:
        raise HandbackError(f"expected 1 to {MAX_CANDIDATES} models, got {len(told)}")
    norms: tuple[Norm, ...] = get_args(Norm) if needs == "poisoned-train" else (victim.norm,)
    allowed = [dataclasses.replace(victim, norm=norm) for norm in norms]
    found = [spec for one in told for spec in allowed if spec.to_dict() == one]
    if len(found) != len(told):
        raise HandbackError(f"expected models of the victim's architecture, got {told!s:.300}")
    return found


def load_model(path: Path, spec: ArchSpec) -> Classifier:
    """One model that a child has left, on the CPU.

    Raises:
        HandbackError: missing, of another shape, or not finite.
    """
    try:
        weights = copy_tensors(path, shapes_of(spec))
    except (OSError, ValueError) as error:
        raise HandbackError(f"its {path.name} cannot be used: {error}") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise HandbackError(f"its {path.name} holds weights that are not finite")
    model = build_model(spec)
    model.load_state_dict(weights)
    return model
