"""Synthetic records: bimodal ASR, every status; the same arguments give the same records."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.records import Attacked, Cell, Cost, Metrics, Record, digest, path_of, text_of
from leaderboard.outcomes import effectiveness, score

# defense -> (needs, chance that the backdoor goes at 2,500 images, accuracy kept)
DEFENSES: dict[str, tuple[str, float, float]] = {
    "identity": ("nothing", 0.0, 1.0),
    "scramble": ("nothing", 1.0, 0.11),
    "ft": ("labels", 0.25, 0.985),
    "clp": ("nothing", 0.6, 0.97),
    "ibau": ("labels", 0.8, 0.96),
    "ibau[mode=repository]": ("labels", 0.75, 0.95),
    "bcu": ("images", 0.85, 0.975),
    "my-prune": ("images", 0.45, 0.93),
}
PAPERS = {
    "clp": "arXiv:2208.03111",
    "ibau": "arXiv:2110.03735",
    "ibau[mode=repository]": "arXiv:2110.03735",
}
BUDGETS = ("0", "1", "100", "2500", "unlabeled", "ood")
SHARE = {"0": 0.0, "1": 0.35, "100": 0.7, "2500": 1.0, "unlabeled": 0.9, "ood": 0.6}
SETTINGS = (
    ("cifar10", "small_vgg", "badnets", "all-to-one", 0.1),
    ("cifar10", "small_vgg", "blended", "all-to-one", 0.1),
    ("gtsrb", "small_vgg", "badnets[pattern=tile, size=5]", "all-to-one", 0.1),
    ("gtsrb", "small_vgg", "wanet", "all-to-all", 0.1),
)
_ATTACKS = (
    *("badnets", "badnets[label_rule=all-to-all]", "blended", "clean_label", "hidden_trigger"),
    *("input_aware", "l0_invisible", "l2_invisible", "label_consistent", "multi_trigger", "sig"),
    *("smooth", "trojan_square", "trojan_watermark", "trojaning", "wanet"),
)
# As many settings as the paper profile has: 62.
PAPER = tuple(
    (dataset, arch, attack, "all-to-all" if "all-to-all" in attack else "all-to-one", 0.1)
    for dataset in ("cifar10", "gtsrb")
    for arch in ("resnet18", "vgg16")
    for attack in _ATTACKS
    if (dataset, attack) != ("gtsrb", "hidden_trigger")
)
FAILURES = ("timeout", "out-of-memory", "diverged", "error")


def metrics(acc: float, asr: float | None, ra: float = 0.0, steps: Sequence[str] = ()) -> Metrics:
    """Figures with the same ASR and RA at every strength."""
    if asr is None:
        return Metrics(acc=acc, images=5000)
    one = Attacked(asr=asr, ra=ra, asr_conditional=asr, asr_including_target=asr)
    return Metrics(acc=acc, images=5000, strengths=dict.fromkeys(steps or ("x1", "x4", "x9"), one))


def amplified(start: Metrics, growth: float) -> Metrics:
    """The same model, but at every further strength ``growth`` of what was safe is lost again."""
    strengths = {}
    for step, (name, first) in enumerate(sorted(start.strengths.items())):
        asr = first.asr + (1 - first.asr) * min(1.0, growth * step)
        ra = first.ra * (1 - min(1.0, growth * step))
        strengths[name] = dataclasses.replace(
            first, asr=asr, ra=ra, asr_conditional=asr, asr_including_target=asr
        )
    return dataclasses.replace(start, strengths=strengths)


def record(
    defense: str = "ibau",
    budget: str = "2500",
    seed: int = 0,
    status: str = "ok",
    before: Metrics | None = metrics(0.9, 1.0, 0.0),  # noqa: B008 - frozen
    after: Metrics | None = metrics(0.88, 0.05, 0.8),  # noqa: B008
    twin: Metrics | None = metrics(0.91, 0.01, 0.9),  # noqa: B008
    needs: str = "labels",
    error: dict[str, Any] | None = None,
    ended: str = "",
    **cell: Any,
) -> Record:
    """One record, with the score and DER that the harness would store."""
    fields: dict[str, Any] = {
        "dataset": "cifar10",
        "arch": "small_vgg",
        "attack": "badnets",
        "label_rule": "all-to-one",
        "poison_rate": 0.1,
        "target": 0,
        "twin": "t" * 64,
        "params": {"variant": defense},  # no two names are one schedule
        "defense_seed": 0,
    } | cell
    place = Cell(defense=defense, budget=budget, victim_seed=seed, needs=needs, **fields)
    done = after if status in ("ok", "not-detected") else None
    attacked = place.attack != "none"
    return Record(
        key=digest([dataclasses.asdict(place), ended]),
        status=status,  # type: ignore[arg-type]
        cell=place,
        inputs={},
        before=before,
        after=done,
        twin=twin if attacked else None,
        score=score(done, twin) if done and twin and attacked else None,
        der=effectiveness(before, done) if done and before and attacked else None,
        cost=Cost(seconds=3.0, images_forward=2000, images_backward=1000, peak_rss=2**29),
        env={"python": "3.11.7", "torch": "2.15.0", "device": "cpu"},
        git={"sha": "0c6402b", "dirty": False},
        error=error,
        ended=ended,
    )


def twin_record(defense: str, budget: str, seed: int, loss: float, **more: Any) -> Record:
    """A clean twin's cell: no target, no trigger."""
    clean = {"attack": "none", "label_rule": "none", "poison_rate": 0.0, "target": None}
    before, after = metrics(0.92, None), metrics(0.92 - loss, None)
    return record(defense, budget, seed, before=before, after=after, **(clean | more))


def grid(
    defenses: Iterable[str] = tuple(DEFENSES),
    budgets: Sequence[str] = BUDGETS,
    settings: Sequence[tuple[str, str, str, str, float]] = SETTINGS,
    seeds: int = 3,
    failures: float = 0.02,
) -> list[Record]:
    """The whole grid. Each defense has random numbers of its own: one more changes no other."""
    found: list[Record] = []
    for defense in defenses:
        needs = DEFENSES.get(defense, ("images", 0.5, 0.95))[0]
        for budget in ["0"] if needs == "nothing" else budgets:
            for setting in settings:
                found += [_cell(defense, budget, setting, seed, failures) for seed in range(seeds)]
            twins = {setting[:2] for setting in settings}
            found += [_twin(defense, budget, *t, s) for t in sorted(twins) for s in range(seeds)]
    return found


def _cell(
    defense: str, budget: str, setting: tuple[str, str, str, str, float], seed: int, failures: float
) -> Record:
    needs, chance, kept = DEFENSES.get(defense, ("images", 0.5, 0.95))
    names = ("dataset", "arch", "attack", "label_rule", "poison_rate")
    place = dict(zip(names, setting, strict=True))
    victim = random.Random(f"victim {setting} {seed}")
    acc = victim.gauss(0.97 if setting[0] == "gtsrb" else 0.86, 0.004)
    steps = ("x1", "x4", "x9") if "badnets" in setting[2] else ("x1", "x2", "x3")
    survives = victim.uniform(0.95, 1.0)
    before = metrics(acc, survives, min(0.01, 1 - survives), steps)
    twin = metrics(acc + 0.004, 0.01, acc - 0.03, steps)
    own = random.Random(f"{defense} {budget} {setting} {seed}")
    share = 1.0 if needs == "nothing" else SHARE.get(budget, 0.5)
    asr = own.betavariate(1, 20) if own.random() < chance * share else own.betavariate(8, 1.5)
    asr = before.asr if defense == "identity" else asr
    keep = kept if needs == "nothing" else 1 - (1 - kept) * (2 - share)
    after = metrics(acc * keep, asr, (1 - (asr or 0.0)) * acc * keep, steps)
    after = amplified(after, own.uniform(0.0, 0.3))
    status, error = "ok", None
    if needs != "nothing" and budget == "0":
        status, error = "not-applicable", {"message": f"needs {needs}, and budget 0 has none"}
    elif own.random() < failures and defense not in ("identity", "scramble"):
        status = own.choice(FAILURES)
        error = {"type": "CellError", "message": f"the child ended after {own.randint(9, 60)} s"}
    origin = "file:my_prune.py" if defense == "my-prune" else "built-in"
    more = place | {"origin": origin, "paper": PAPERS.get(defense, ""), "target": seed}
    return record(
        defense, budget, seed, status, before, after, twin, needs=needs, error=error, **more
    )


def _twin(defense: str, budget: str, dataset: str, arch: str, seed: int) -> Record:
    needs, _, kept = DEFENSES.get(defense, ("images", 0.5, 0.95))
    applies = needs == "nothing" or budget != "0"
    return twin_record(
        defense,
        budget,
        seed,
        loss=random.Random(f"{defense} {budget} {dataset} {seed}").uniform(0.5, 1.0) * (1 - kept),
        dataset=dataset,
        arch=arch,
        needs=needs,
        status="ok" if applies else "not-applicable",
        error=None if applies else {"message": f"needs {needs}, and budget 0 has none"},
    )


def store(root: Path, records: Iterable[Record]) -> None:
    """Writes records as ``bench.records.write`` does, without waiting for the disk each time."""
    for item in records:
        path = path_of(root, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(item), encoding="utf-8")


def victim_json(root: Path, name: str, **changes: Any) -> Path:
    """One ``victim.json`` as the zoo writes it."""
    before, twin = metrics(0.9, 0.82, 0.1), metrics(0.91, 0.01, 0.9)
    payload: dict[str, Any] = {
        "label": name,
        "dataset": "cifar10",
        "arch": "small_vgg",
        "attack": "sig",
        "label_rule": "clean-label",
        "poison_rate": 0.05,
        "seed": 0,
        "target": 0,
        "status": "rejected",
        "reasons": ["ASR 82.0% is below 90.0%"],
        "metrics": dataclasses.asdict(before),
        "twin_metrics": dataclasses.asdict(twin),
    }
    path = root / "zoo" / name / "victim.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(payload | changes), encoding="utf-8")
    return path
