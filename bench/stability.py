"""`bench stability`: how stable a victim's answers on its base sets are, against clean images.

FRED's Figure 1 (c) and (d), for every base set that is stored; see :mod:`zoo.stability`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from tabulate import tabulate
from torch import Tensor

from bench.app import NOTHING_MATCHED, OK
from bench.measurements import measured, to_csv
from bench.progress import Progress
from bench.subjects import ProbedSet, Subject, Subjects
from bench.verbs import Request, prepare
from leaderboard.prints import Files
from leaderboard.stability import Measured, render
from leaderboard.victims import setting_of
from zoo.files import write_atomic
from zoo.models import Classifier
from zoo.seeds import generator_of
from zoo.stability import (
    Probe,
    gradient_norms,
    norm_for,
    predictions_along,
    universal_perturbation,
)
from zoo.train import to_unit

VERSION: Final = 1  # raise it when the same inputs would give other numbers
HALF: Final = 0.5  # of the images misclassified: where the summary reads a curve


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of one victim, with what was measured on it."""

    victim: str  # its label
    probed: ProbedSet
    parameters: int  # of the victim
    measured: Measured

    def summary(self) -> dict[str, Any]:
        """Setting, set and the figures of the summary, as JSON values."""
        m, probed = self.measured, self.probed
        gradients = sorted(m.gradients)
        return {
            **dataclasses.asdict(m.setting),
            "victim_seed": m.victim_seed,
            "set": probed.name,
            "kind": probed.kind,
            "budget": probed.budget,
            "seed": probed.seed,
            "per_class": probed.per_class,
            "images": len(gradients),
            "misclassified_at_0": m.misclassified[0],
            "half_misclassified_norm": norm_for(HALF, m.norms, m.misclassified),
            "half_as_trigger": as_trigger(m),
            "gradient_median": median(gradients),
            "gradient_90": gradients[math.ceil(0.9 * len(gradients)) - 1],
            "parameters": self.parameters,
            "sheet": probed.sheet,
        }


def stability(request: Request, json_output: bool) -> int:
    """`bench stability`.

    Raises:
        UserError: data is missing, something stored is damaged, or the disk is full.
    """
    settings, registry = prepare(request)
    torch.set_num_threads(1)  # the same numbers whatever the number of cores
    subjects = Subjects(settings, registry)
    rows: list[Row] = []
    with Progress("victims", len(subjects), 1) as progress:
        for subject in subjects:
            with progress.task(subject.victim.meta["label"]) as done:
                rows += _rows(subject, Probe(), settings.root, settings.device)
                done("ok", "")
    subjects.explain()
    if not rows:
        print("bench: there is no base set to look at", file=sys.stderr)
        return NOTHING_MATCHED
    folder = settings.root / "leaderboard"
    write_atomic(folder / "stability.csv", to_csv([row.summary() for row in rows]))
    pictures = render(folder / "stability", [row.measured for row in rows])
    _show(rows, folder / "stability.csv", pictures, json_output)
    return OK


def _rows(subject: Subject, probe: Probe, root: Path, device: str) -> list[Row]:
    """Everything about one victim: its base sets, then references of the same sizes."""
    sizes = subject.sizes()
    references = [make(size) for make in (subject.clean, subject.training) for size in sizes]
    model = subject.victim.model().to(device)
    victim = subject.victim
    rows = []
    for probed in (*subject.sets, *references):
        inputs = {
            "version": VERSION,
            "probe": {**dataclasses.asdict(probe), "norms": list(probe.norms)},
            "victim": victim.hash,
            "trigger": victim.meta["trigger_sha256"],
            "set": probed.sha256(),
        }
        goals = goals_of(subject, probed.labels)
        measure = partial(measure_set, model, probed, goals, probe)
        found = measured(root, "stability", inputs, measure)
        rows.append(
            Row(
                victim=victim.meta["label"],
                probed=probed,
                parameters=sum(p.numel() for p in model.parameters()),
                measured=Measured(
                    setting=setting_of(victim.meta),
                    victim_seed=victim.meta["seed"],
                    label=probed.label,
                    seed=probed.seed,
                    per_class=probed.per_class,
                    norms=probe.norms,
                    **{name: tuple(values) for name, values in found.items()},
                ),
            )
        )
    return rows


def goals_of(subject: Subject, labels: Tensor) -> Tensor:
    """What the victim's trigger would have images taken for: ``int64 (N, P)`` for P triggers."""
    attack, _ = subject.victim.attack()
    parts = max(1, len(attack.parts))
    target, classes = subject.victim.meta["target"], subject.data.num_classes
    # Image n of a call belongs to part n modulo their number.
    goals = attack.relabel(labels.repeat_interleave(parts), target, classes)
    return goals.view(len(labels), parts)


def measure_set(
    model: Classifier, probed: ProbedSet, goals: Tensor, probe: Probe
) -> dict[str, list[float]]:
    """The three lists of :class:`leaderboard.stability.Measured` for one set.

    Args:
        model: in eval mode, on the device to work on.
        probed: the set.
        goals: ``int64 (N, P)``: what a trigger would have each image taken for.
        probe: how to look at it.
    """
    device = next(model.parameters()).device
    images, labels = to_unit(probed.images.to(device)), probed.labels.to(device)
    # The same random numbers for every set: their differences are not of the draw.
    draw = generator_of("stability")
    direction = universal_perturbation(model, images, labels, probe, draw)
    predicted = predictions_along(model, images, direction, probe.norms)
    wrong = predicted != probed.labels
    as_meant = wrong & (predicted[..., None] == goals).any(-1)
    return {
        "misclassified": wrong.double().mean(1).tolist(),
        "as_trigger": as_meant.double().mean(1).tolist(),
        "gradients": gradient_norms(model, images, labels).tolist(),
    }


def as_trigger(m: Measured) -> float | None:
    """Of the misclassified, where they are half at last: the share that the trigger would lead so.

    None where half are never misclassified.
    """
    for wrong, hit in zip(m.misclassified, m.as_trigger, strict=True):
        if wrong >= HALF:
            return hit / wrong
    return None


def _show(rows: Sequence[Row], table: Path, pictures: Sequence[Files], json_output: bool) -> None:
    if json_output:
        files = {"csv": str(table), "pictures": [p.to_dict() for p in pictures]}
        print(json.dumps({"rows": [row.summary() for row in rows], **files}, indent=1))
        return
    print(tabulate([_line(row) for row in rows], "keys", disable_numparse=True))
    for path in (table, *(p for f in pictures for p in (f.svg, f.png, f.csv))):
        print(path)


def _line(row: Row) -> dict[str, str]:
    """One line of the table on standard output."""
    found, m = row.summary(), row.measured
    norm, led = found["half_misclassified_norm"], found["half_as_trigger"]
    return {
        "victim": row.victim,
        "set": m.label if row.probed.kind == "base-set" else f"({m.label})",
        "images": str(found["images"]),
        "wrong at 0": f"{100 * found['misclassified_at_0']:.1f} %",
        "norm for 50 % wrong": f"> {m.norms[-1]:g}" if norm is None else f"{norm:.2f}",
        "of them as the trigger": "" if led is None else f"{100 * led:.0f} %",
        "gradient, median": f"{found['gradient_median']:.1e}",
        "90 % below": f"{found['gradient_90']:.1e}",
    }
