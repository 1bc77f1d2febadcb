"""The victims themselves: what the zoo says of them, or else what the records remember."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from bench.records import Metrics, Record, checked_metrics, read_json

# "used": it stands in records, but the zoo beside them does not hold it.
VictimStatus = Literal["admitted", "rejected", "twin", "used"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The unit of inference: seeds are replicates nested in it."""

    dataset: str
    arch: str
    attack: str
    label_rule: str
    poison_rate: float

    @cached_property
    def key(self) -> str:
        """The same text as ``bench.records.Cell.setting``."""
        return f"{self.dataset} {self.arch} {self.attack} {self.label_rule} {self.poison_rate:g}"

    @property
    def clean(self) -> bool:
        """Whether this is a clean twin's setting: no attack, no trigger."""
        return self.attack == "none"

    @property
    def label(self) -> str:
        """For people: parts apart, the poison rate in percent."""
        if self.clean:
            return f"{self.dataset} · {self.arch} · clean twin"
        rate = f"{100 * self.poison_rate:.3g} %"
        return f"{self.dataset} · {self.arch} · {self.attack} · {self.label_rule} · {rate}"


@dataclass(frozen=True, kw_only=True)
class Victim:
    """One trained model before any defense."""

    setting: Setting
    seed: int
    target: int | None
    status: VictimStatus
    reasons: tuple[str, ...]
    metrics: Metrics
    twin_metrics: Metrics | None
    weights: str = ""  # SHA-256 of them, where it is known
    training: str = ""  # how long, in words; empty where only records know the victim

    @property
    def key(self) -> tuple[str, int]:
        """What a page knows a victim by: its setting and its seed."""
        return self.setting.key, self.seed


def setting_of(source: Mapping[str, Any]) -> Setting:
    """The setting part of a cell's fields, or of a victim's metadata."""
    return _setting(
        str(source["dataset"]),
        str(source["arch"]),
        str(source["attack"]),
        str(source["label_rule"]),
        float(source["poison_rate"]),
    )


@cache  # a hundred thousand records share some dozens of settings
def _setting(dataset: str, arch: str, attack: str, label_rule: str, rate: float) -> Setting:
    return Setting(
        dataset=dataset, arch=arch, attack=attack, label_rule=label_rule, poison_rate=rate
    )


def read_victim(path: Path) -> Victim:
    """Reads one ``victim.json``.

    Raises:
        ValueError: it is not what the zoo writes.
    """
    try:
        source = read_json(path)
        metrics = checked_metrics(source["metrics"])
        if metrics is None:
            raise ValueError("it has no metrics")
        if source["status"] not in ("admitted", "rejected", "twin"):
            raise ValueError(f"unknown status {source['status']!r}")
        return Victim(
            setting=setting_of(source),
            seed=int(source["seed"]),
            target=None if source["target"] is None else int(source["target"]),
            status=source["status"],
            reasons=tuple(str(reason) for reason in source.get("reasons", ())),
            metrics=metrics,
            twin_metrics=checked_metrics(source.get("twin_metrics")),
            weights=str(source.get("weights_sha256", "")),
            training=length_of(source.get("recipe", {}).get("training", {})),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        place = "/".join(path.parts[-3:])
        raise ValueError(f"cannot read victim {place}: {type(error).__name__}: {error}") from error


def length_of(training: Mapping[str, Any]) -> str:
    """How long a victim was trained, in words; empty where its recipe does not say."""
    for unit in ("steps", "epochs"):  # the first, where it is given, is what counts
        if training.get(unit) is not None:
            return f"{int(training[unit]):,} {unit}"
    return ""


def read_zoo(root: Path) -> tuple[list[Victim], list[str]]:
    """All readable victims under ``root/zoo``, and one message for each that is not."""
    found: list[Victim] = []
    problems: list[str] = []
    for path in sorted((root / "zoo").glob("**/victim.json")):
        try:
            found.append(read_victim(path))
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def from_record(record: Record) -> Victim | None:
    """The victim as a record remembers it; None where the record holds no figures of it."""
    if record.before is None:
        return None
    setting = setting_of(vars(record.cell))
    return Victim(
        setting=setting,
        seed=record.cell.victim_seed,
        target=record.cell.target,
        status="twin" if setting.clean else "used",
        reasons=(),
        metrics=record.before,
        twin_metrics=record.twin,
        weights=str(record.inputs.get("victim", "")),
    )


def merge(zoo: Iterable[Victim], records: Iterable[Record]) -> dict[tuple[str, int], Victim]:
    """The victim of every setting and seed, in order.

    A zoo may hold several, of different recipes: it is the one that the newest record rests on,
    which the zoo describes better than the record. Without records an admitted one comes first.
    """
    stored: defaultdict[tuple[str, int], list[Victim]] = defaultdict(list)
    for victim in zoo:
        stored[victim.key].append(victim)
    known = {key: min(found, key=lambda v: v.status == "rejected") for key, found in stored.items()}
    for record in sorted(records, key=lambda record: (record.ended, record.key)):
        place = record.cell.setting, record.cell.victim_seed
        named = str(record.inputs.get("victim", ""))
        same = [v for v in stored[place] if v.weights == named or not (v.weights and named)]
        found = same[0] if same else from_record(record)
        if found is not None:
            known[place] = found
    return dict(sorted(known.items()))
