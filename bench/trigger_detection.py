"""`bench trigger-detection`: whether synthesised images hold the victim's trigger.

FRED's section 4.1, for every base set that is stored; see :mod:`zoo.trigger_detector`. The
benchmark knows the trigger; no defense does.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from typing import Any, Final

import torch
from tabulate import tabulate
from torch import Tensor

from bench.app import NOTHING_MATCHED, OK
from bench.measurements import measured, to_csv
from bench.progress import Progress
from bench.subjects import ProbedSet, Subject, Subjects
from bench.verbs import Request, prepare
from leaderboard.victims import setting_of
from zoo.build import clean_training_set_of
from zoo.data import DataSet
from zoo.files import write_atomic
from zoo.seeds import generator_of
from zoo.splits import split_test, stratified
from zoo.store import Stored
from zoo.trigger_detector import DetectorSchedule, share_triggered, train_detector

VERSION: Final = 1  # raise it when the same inputs would give other numbers
HELD_OUT: Final = 2_000  # evaluation images, at most, that a detector is judged on
RELIABLE: Final = 0.95  # right on fewer, of either kind: its answers are marked


def trigger_detection(request: Request, json_output: bool) -> int:
    """`bench trigger-detection`.

    Raises:
        UserError: data is missing, something stored is damaged, or the disk is full.
    """
    settings, registry = prepare(request)
    torch.set_num_threads(1)  # the same numbers whatever the number of cores
    subjects = Subjects(settings, registry)
    lines: list[dict[str, Any]] = []
    with Progress("detectors", len(subjects), 1) as progress:
        for subject in subjects:
            with progress.task(subject.victim.meta["label"]) as done:
                sets = (*subject.sets, *(subject.clean(size) for size in subject.sizes()))
                schedule = DetectorSchedule()
                inputs = inputs_of(subject, sets, schedule)
                measure = partial(detect, subject, sets, schedule, settings.device)
                found = measured(settings.root, "trigger-detection", inputs, measure)
                lines += _lines(subject, sets, found)
                done("ok", "")
    subjects.explain()
    if not lines:
        print("bench: there is no base set to look at", file=sys.stderr)
        return NOTHING_MATCHED
    path = settings.root / "leaderboard" / "trigger-detection.csv"
    write_atomic(path, to_csv(lines))
    if json_output:
        print(json.dumps({"rows": lines, "csv": str(path)}, indent=1))
    else:
        print(tabulate([_shown(line) for line in lines], "keys", disable_numparse=True))
        print(path)
    return OK


def inputs_of(
    subject: Subject, sets: tuple[ProbedSet, ...], schedule: DetectorSchedule
) -> dict[str, Any]:
    """All that decides what a detector of one victim finds."""
    meta = subject.victim.meta
    return {
        "version": VERSION,
        "schedule": dataclasses.asdict(schedule),
        "held_out": HELD_OUT,
        "recipe": meta["recipe_hash"],
        "trigger": meta["trigger_sha256"],
        "data": subject.data.fingerprint,
        "sets": [probed.sha256() for probed in sets],
    }


def detect(
    subject: Subject, sets: tuple[ProbedSet, ...], schedule: DetectorSchedule, device: str
) -> dict[str, Any]:
    """Trains the detector of one victim, judges it, and asks it about every set.

    Returns:
        ``right_clean`` and ``right_triggered``: the shares of held-out evaluation images, without
        and with the trigger, on which it is right; ``sets``: for each set, the share that is taken
        for triggered, as it is (``triggered``) and with the trigger on it (``stamped``).
    """
    victim, data = subject.victim, subject.data
    attack, assets = victim.attack()
    images, _ = clean_training_set_of(victim, data)
    draw = generator_of("trigger-detection", data.name, victim.meta["seed"])

    def stamp(images: Tensor) -> Tensor:
        return attack.trigger(images, assets)

    detector = train_detector(images, stamp, victim.spec, schedule, draw, device)

    def found(images: Tensor) -> dict[str, float]:
        return {
            "triggered": share_triggered(detector, images),
            "stamped": share_triggered(detector, stamp(images)),
        }

    unseen = found(held_out(victim, data))
    return {
        "right_clean": 1 - unseen["triggered"],
        "right_triggered": unseen["stamped"],
        "sets": [found(probed.images) for probed in sets],
    }


def held_out(victim: Stored, data: DataSet) -> Tensor:
    """Some of the evaluation images of a victim, class-stratified: ``uint8 (N, C, H, W)``."""
    seed = int(victim.meta["seed"])
    index = split_test(data.test.labels, data.name, seed).eval
    draw = generator_of("held-out", data.name, seed)
    size = min(HELD_OUT, len(index))
    return data.test.images[index[stratified(data.test.labels[index], size, draw)]]


def _lines(
    subject: Subject, sets: tuple[ProbedSet, ...], found: dict[str, Any]
) -> list[dict[str, Any]]:
    """One line per set, JSON values."""
    meta = subject.victim.meta
    return [
        {
            **dataclasses.asdict(setting_of(meta)),
            "victim_seed": meta["seed"],
            "victim": meta["label"],
            "set": probed.name,
            "kind": probed.kind,
            "budget": probed.budget,
            "seed": probed.seed,
            "per_class": probed.per_class,
            "images": len(probed.labels),
            "right_clean": found["right_clean"],
            "right_triggered": found["right_triggered"],
            "reliable": min(found["right_clean"], found["right_triggered"]) >= RELIABLE,
            **answers,
            "sheet": probed.sheet,
        }
        for probed, answers in zip(sets, found["sets"], strict=True)
    ]


def _shown(line: dict[str, Any]) -> dict[str, str]:
    """One line of the table on standard output."""
    name = f"{line['set']} (+{line['budget']})" if line["budget"] else line["set"]
    right = " / ".join(f"{100 * line[f'right_{kind}']:.1f}" for kind in ("clean", "triggered"))
    return {
        "victim": line["victim"],
        "set": name if line["kind"] == "base-set" else f"({name})",
        "images": str(line["images"]),
        "taken for triggered": f"{100 * line['triggered']:.1f} %",
        "with the trigger on": f"{100 * line['stamped']:.1f} %",
        "right when clean / triggered": right + ("" if line["reliable"] else "  unreliable"),
    }
