"""Profiles: named grids of settings, seeds, budgets, defenses and hyper-parameter overrides.

A profile is a TOML file; ``quick``, ``cpu``, ``paper`` and one per paper ship with the package.
Every mistake in one is reported at once, each with its line.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zoo.errors import UserError

PRESETS: Final = ("ibau", "bcu", "dhbe", "fred")  # the conditions of one paper each
BUILT_IN: Final = ("quick", "cpu", "paper", *PRESETS)
_BUDGET: Final = re.compile(r"0|1t|unlabeled|ood|[1-9][0-9]{0,8}(pc)?")
MAX_BYTES: Final = 2**20  # of a profile; the largest of ours has 3,000
_LONGEST: Final = 2_000  # letters of a line
_MANY: Final = 10_000_000  # of anything that a profile may count
_SHOWN: Final = 20  # mistakes of a profile that are listed


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(_Strict):
    """Fields of ``zoo.train.Recipe`` that a profile may set."""

    epochs: int = Field(gt=0, le=_MANY)
    batch_size: int = Field(default=128, gt=0, le=_MANY)
    lr: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = False
    schedule: Literal["one-cycle", "multi-step", "cosine"] = "one-cycle"


class RobustTraining(_Strict):
    """Fields of ``zoo.asset_recipes.Robust``: how adversarially trained surrogates are made."""

    epochs: int = Field(default=30, gt=0, le=_MANY)
    steps: int = Field(default=10, gt=0, le=_MANY)
    epsilon: float = Field(default=8, gt=0)


class PriorTraining(_Strict):
    """How generative priors are made: fields of ``zoo.prior.PriorSpec`` and ``PriorSchedule``."""

    # Of the generator; the critic makes five for each.
    steps: int = Field(default=2000, gt=0, le=_MANY)
    width: float = Field(default=0.25, gt=0, le=8)  # factor on every channel count
    batch_size: int = Field(default=32, gt=1, le=_MANY)
    lr: float = Field(default=2e-4, gt=0)  # of Adam


class Grid(_Strict):
    """One data set on one architecture."""

    dataset: str
    arch: str
    width: float = Field(default=1.0, gt=0)
    train_images: int | None = Field(default=None, gt=0, le=_MANY)
    attacks: list[str] = Field(min_length=1)
    ood: str | None = None  # overrides the data set's usual out-of-distribution set
    # Overrides the protocol's, which goes by seed.
    target: int | None = Field(default=None, ge=0, le=_MANY)
    training: Training
    robust: RobustTraining = RobustTraining()


class Limits(_Strict):
    """What one cell may use."""

    seconds: float = Field(default=900, gt=0)
    memory_gib: float = Field(default=6, gt=0)


class Evasion(_Strict):
    """How many evaluation images are attacked where robust accuracy is measured."""

    pgd_images: int = Field(default=500, gt=0, le=_MANY)
    autoattack_images: int = Field(default=0, ge=0, le=_MANY)  # of those; needs the extra `robust`


class Profile(_Strict):
    """A whole benchmark run."""

    name: str
    description: str
    seeds: list[int] = Field(min_length=1)
    defense_seeds: list[int] = Field(default=[0], min_length=1)
    budgets: list[str] = Field(min_length=1)
    defenses: list[str] = Field(min_length=1)
    grid: list[Grid] = Field(min_length=1)
    limits: Limits = Limits()
    prior: PriorTraining = PriorTraining()  # one prior per data set, where a defense needs it
    evasion: Evasion = Evasion()
    # Hyper-parameters changed for the whole profile, by defense name: a smaller schedule for CPUs.
    params: dict[str, dict[str, Any]] = {}

    @field_validator("budgets")
    @classmethod
    def _known_budgets(cls, budgets: list[str]) -> list[str]:
        for budget in budgets:
            check_budget(budget)
        return budgets

    @field_validator("seeds", "defense_seeds")
    @classmethod
    def _natural_seeds(cls, seeds: list[int]) -> list[int]:
        if not 0 <= min(seeds) <= max(seeds) <= _MANY or len(set(seeds)) != len(seeds):
            raise ValueError(
                f"expected different seeds >= 0, none above {_MANY:,}, got {seeds!r:.200}"
            )
        return seeds


def check_budget(token: str) -> str:
    """The token itself; raises a ValueError for one that is not a budget."""
    if not _BUDGET.fullmatch(token):
        several = ". Give each its own: --budget 100 --budget ood" if "," in token else ""
        raise ValueError(
            f"expected a budget 0, 1, 1t, a number of images, a number with pc (per class), "
            f"unlabeled or ood, got {token!r}{several}"
        )
    return token


def load_profile(name: str) -> Profile:
    """A built-in profile by name, or any TOML file by path.

    Raises:
        UserError: unknown name, TOML syntax, or values that do not fit, each with its line.
    """
    if name in BUILT_IN:
        text = files("bench").joinpath("profiles", f"{name}.toml").read_text(encoding="utf-8")
        return parse_profile(text, f"{name}.toml")
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(f"unknown profile {name!r}. Known: {', '.join(BUILT_IN)}, or a FILE.toml")
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read profile {path}: {error}") from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"profile {path} has more than {MAX_BYTES:,} bytes: is it a profile?")
    return parse_profile(text, str(path))


def parse_profile(text: str, name: str) -> Profile:
    """Parses and validates the text of a profile."""
    if any(len(line) > _LONGEST for line in text.splitlines()):  # a key of a mile takes minutes
        raise UserError(f"profile {name}: a line has more than {_LONGEST:,} letters")
    try:
        payload = tomllib.loads(text)
    except RecursionError:
        raise UserError(f"profile {name}: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of a thousand digits
        raise UserError(f"profile {name}: {error}") from error
    try:
        return Profile.model_validate(payload)
    except ValidationError as error:
        lines = [
            f"{name}:{line_of(text, problem['loc'])}: "
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} ({_got(problem['input'])})"
            for problem in error.errors()[:_SHOWN]
        ]
        if error.error_count() > _SHOWN:
            lines.append(f"... and {error.error_count() - _SHOWN} more")
        raise UserError("the profile does not fit:\n  " + "\n  ".join(lines)) from error


def _got(value: object) -> str:
    try:
        return f"got {value!r:.200}"
    except (RecursionError, ValueError):  # nested deeply, or a number of a thousand digits
        return "got something that cannot be shown"


def line_of(text: str, location: tuple[int | str, ...]) -> int:
    """The line (from 1) where a value is set, as near as a search of the text can tell.

    Walks down the location: a table's header or an array's n-th header narrows the lines, a key
    names one. What is missing altogether is reported at the header of its table.
    """
    lines = text.splitlines()
    start, prefix, found = 0, "", 1
    for i, part in enumerate(location):
        if isinstance(part, int):
            headers = [n for n, line in enumerate(lines) if line.strip() == f"[[{prefix}]]"]
            if part < len(headers):
                start = headers[part]
                found = start + 1
            continue
        prefix = f"{prefix}.{part}" if prefix else part
        for n in range(start, len(lines)):
            line = lines[n].strip()
            if line in (f"[{prefix}]", f"[[{prefix}]]"):
                start, found = n, n + 1
                break
            is_key = re.match(rf"{re.escape(part)}\s*=", line)
            if is_key and not (i == 0 and _in_table(lines, n)):
                start, found = n, n + 1
                break
    return found


def _in_table(lines: list[str], n: int) -> bool:
    """Whether line n stands below a table header."""
    return any(line.lstrip().startswith("[") for line in lines[:n])
