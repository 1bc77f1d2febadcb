"""What ``victim.json`` and ``asset.json`` must say before anything in them is relied upon.

Such files come with zoos that others have built. What follows from the recipe must be what the
recipe says; the rest must be of its type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from zoo.files import digest
from zoo.models import ArchSpec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Spec = dict[str, Any]


class _Told(BaseModel):
    """Further fields are nobody's concern: newer versions may write more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Attacked(_Told):
    asr: float
    ra: float
    asr_conditional: float | None
    asr_including_target: float


class _Metrics(_Told):
    acc: float
    images: int
    strengths: dict[str, _Attacked]


class _Training(_Told):
    images: int = Field(ge=0)


class _Victim(_Told):
    status: Literal["trained", "twin", "admitted", "rejected"]
    reasons: list[str]
    target: int | None
    data_fingerprint: str
    recipe: dict[str, Any]
    spec: Spec
    weights_sha256: Sha256
    trigger_sha256: Sha256 | None = None
    metrics: _Metrics | None
    twin_metrics: _Metrics | None
    training: _Training
    poisoned_images: int | None


class _Asset(_Told):
    recipe: dict[str, Any]
    tensors_sha256: Sha256
    spec: Spec | None = None  # of a surrogate


def check_victim(meta: object, facts: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a victim or twin, if it is that.

    Args:
        meta: the JSON value.
        facts: the fields that follow from the recipe, with their values.

    Raises:
        ValueError: a field is missing, of another type, or not what the recipe says.
    """
    told = _checked(_Victim, meta, facts)
    spec = ArchSpec.from_dict(told["spec"])
    if told["target"] is not None and not 0 <= told["target"] < spec.num_classes:
        raise ValueError(f"target: expected a class below {spec.num_classes}, got {told['target']}")
    if (spec.name, spec.width) != (told["recipe"]["arch"], told["recipe"]["width"]):
        raise ValueError("its spec is not that of its recipe")
    return told


def check_asset(meta: object, facts: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a surrogate, material or prior; as :func:`check_victim`."""
    told = _checked(_Asset, meta, facts)
    if told.get("spec") is not None:
        ArchSpec.from_dict(told["spec"])
    return told


def _checked(kind: type[_Told], meta: object, facts: dict[str, Any]) -> dict[str, Any]:
    try:
        TypeAdapter(kind).validate_python(meta)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg']}") from error
    assert isinstance(meta, dict)
    for name, value in facts.items():
        if name not in meta or meta[name] != value:
            raise ValueError(f"{name}: expected {value!r}, got {meta.get(name)!r:.100}")
    if digest(meta["recipe"]) != facts["recipe_hash"]:
        raise ValueError("its recipe is not the one that its hash is of")
    return meta
