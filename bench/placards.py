"""What stands beside an exhibit, in words: the same on the sheet and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from attacks import Attack
from bench.exhibits import FACTOR, GREY, SAMPLES, Exhibit, PriorExhibit
from bench.priors import describe_prior
from zoo.recipes import VictimRecipe

CHANGE: Final = f"change ×{FACTOR}"
LEGEND: Final = (
    f"clean: a training image; x1: with the trigger of training; {CHANGE}: {GREY} + {FACTOR} "
    "(x1 − clean), grey where nothing changes; then stronger than in training: patches in 4 and 9 "
    "copies (x4, x9), other triggers at 2 and 3 times their strength (x2, x3)."
)
_NAME: Final = 80  # characters of a name that are shown


@dataclass(frozen=True, kw_only=True)
class Column:
    """The images of an exhibit in one state, from first to last."""

    heading: str
    alt: str
    images: Tensor  # uint8 (n, 3, H, W)
    figures: tuple[str, ...] = ()  # of the victim and its clean twin, on such images


@dataclass(frozen=True, kw_only=True)
class Placard:
    """An exhibit with its words."""

    title: str
    facts: tuple[str, ...]
    paper: str
    victim: str
    columns: tuple[Column, ...]
    meant: tuple[str, ...]  # what each image is meant to be taken for; empty where for nothing
    remarks: tuple[str, ...]
    why: str
    command: str


def placard(exhibit: Exhibit) -> Placard:
    """The words for one exhibit."""
    attack, meant = exhibit.attack, _meant(exhibit)
    remarks = (*_remarks(exhibit), f"meant: {', '.join(meant)}") if meant else ()
    return Placard(
        title=shorten(attack.label()),
        facts=(attack.kind, rule(attack, exhibit.target), rate(attack, exhibit.target)),
        paper=attack.paper,
        victim=_victim(exhibit),
        columns=_columns(exhibit),
        meant=meant,
        remarks=remarks,
        why=exhibit.why,
        command=exhibit.command,
    )


def prior_placard(exhibit: PriorExhibit) -> Placard:
    """The words for one generative prior."""
    recipe, pool = exhibit.recipe, shorten(exhibit.recipe.ood)
    made = [
        Column(
            heading="G(z)" if n == 0 else "",
            alt=f"Images that the prior made, {n + 1} of {SAMPLES}",
            images=exhibit.samples[:, n],
        )
        for n in range(SAMPLES)
    ]
    real = Column(heading="real", alt=f"Images of {pool}", images=exhibit.real)
    return Placard(
        title="generative prior",
        facts=(
            "WGAN-GP",
            describe_prior(exhibit.figures),
            f"{recipe.training.steps} steps on {exhibit.figures['pool']} images of {pool}",
        ),
        paper="arXiv:1704.00028",
        victim="",
        columns=(real, *made),
        meant=("",) * len(exhibit.real),
        remarks=(),
        why="",
        command="",
    )


def rule(attack: Attack, target: int) -> str:
    """Which class triggered images are meant to be taken for, and whether labels lie."""
    if attack.label_rule == "all-to-all":
        return "all-to-all: class y to y + 1"
    if attack.label_rule == "clean-label":
        return f"clean-label: class {target} keeps its label"
    if attack.parts:
        return f"{len(attack.parts)} triggers, each to a class of its own"
    return f"all-to-one: to class {target}"


def rate(attack: Attack, target: int) -> str:
    """How many images are poisoned."""
    whole = f"class {target}" if attack.label_rule == "clean-label" else "the training set"
    return f"{100 * attack.poison_rate:.3g} % of {whole} poisoned"


def _victim(exhibit: Exhibit) -> str:
    """Whose trigger it is, and how the gate judged the victim."""
    if exhibit.victim is None:
        return "" if exhibit.why else f"not built yet; drawn as for {_model(exhibit.recipe)}"
    meta = exhibit.victim.meta
    status = "not judged yet" if meta["metrics"] is None else str(meta["status"])
    reasons = "".join(f"; {reason}" for reason in meta["reasons"])
    others = f" (1 of {exhibit.built} built)" if exhibit.built > 1 else ""
    return shorten(f"{_model(exhibit.recipe)}{others}, {status}{reasons}", 160)


def _model(recipe: VictimRecipe) -> str:
    return f"{recipe.arch_label} seed {recipe.seed}"


def _columns(exhibit: Exhibit) -> tuple[Column, ...]:
    classes = ", ".join(str(c) for c in exhibit.classes)
    victim, twin = _metrics(exhibit, "metrics"), _metrics(exhibit, "twin_metrics")
    clean = Column(
        heading="clean",
        alt=f"Clean images of classes {classes}",
        images=exhibit.clean,
        figures=_figures("ACC", victim.get("acc"), twin.get("acc")),
    )
    if not exhibit.triggered:
        return (clean,)
    triggered = [
        Column(
            heading=f"x{strength}",
            alt=f"The same images with the trigger at x{strength}",
            images=images,
            figures=_figures("ASR", _asr(victim, strength), _asr(twin, strength)),
        )
        for strength, images in exhibit.triggered.items()
    ]
    change = Column(
        heading=CHANGE,
        alt=f"The difference between x1 and clean, {FACTOR} times, around grey",
        images=exhibit.amplified_change,
    )
    return (clean, triggered[0], change, *triggered[1:])


def _metrics(exhibit: Exhibit, which: str) -> Mapping[str, Any]:
    return {} if exhibit.victim is None else exhibit.victim.meta[which] or {}


def _asr(metrics: Mapping[str, Any], strength: int) -> float | None:
    entry = metrics.get("strengths", {}).get(f"x{strength}")
    return None if entry is None else entry["asr"]


def _figures(name: str, victim: float | None, twin: float | None) -> tuple[str, ...]:
    """In percent; a twin's ASR is what the trigger does to a model without a backdoor."""
    if victim is None:
        return ()
    found = (f"{name} {100 * victim:.1f}",)
    return found if twin is None else (*found, f"twin {100 * twin:.1f}")


def _meant(exhibit: Exhibit) -> tuple[str, ...]:
    """``class 6 to 0``, with the name of the trigger where an attack has several."""
    parts = exhibit.attack.parts
    return tuple(
        (f"{parts[n % len(parts)]}: " if parts else "") + f"class {label} to {goal}"
        for n, (label, goal) in enumerate(zip(exhibit.classes, exhibit.goals, strict=True))
    )


def _remarks(exhibit: Exhibit) -> tuple[str, ...]:
    """How much changes; where it matters, that poisoned training images look different."""
    attack = exhibit.attack
    found = []
    if exhibit.triggered:
        change = exhibit.change(1)
        found.append(
            f"x1 changes {100 * change.pixels:.3g} % of the pixels by up to {change.largest} of "
            f"255, L2 norm {change.l2:.2f}"
        )
    if attack.label_rule == "clean-label" and type(attack).poisoned is not Attack.poisoned:
        found.append("its poisoned training images look different: this is the trigger of the test")
    return tuple(found)


def shorten(text: str, limit: int = _NAME) -> str:
    """Without what no file and no font can hold, and not longer than the limit."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"
