"""From a recipe to a victim: poison, train, store, judge.

:func:`build` trains and stores; :func:`admit` attacks the result and its clean twin on the
evaluation images and decides whether the victim may be used.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from attacks import Assets, Poison, Preparation
from zoo.allocator import keep_freed_memory
from zoo.data import DataSet, Library
from zoo.evaluate import EvaluationSet, attacked_set, clean_set, evaluate
from zoo.models import ArchSpec, build_model
from zoo.recipes import VictimRecipe, target_of
from zoo.seeds import generator_of
from zoo.splits import split_test, subset
from zoo.store import Stored, Zoo
from zoo.train import EpochReport, train

MIN_ASR: Final = 0.90
MIN_ASR_OF_ACC: Final = 0.90  # all-to-all: a share of ACC, because ASR cannot exceed it by much
MAX_ACC_LOSS: Final = 0.02  # against the clean twin


def build(
    recipe: VictimRecipe, root: Path, library: Library, device: str, threads: int
) -> dict[str, Any]:
    """Trains one victim or twin and stores it under ``root``; returns its metadata.

    The progress of the training is in ``train.jsonl`` beside the weights, one line per epoch.

    Raises:
        UserError: the data is missing or damaged, or the disk is full.
        DivergedError: the loss is no longer finite.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    zoo, data = Zoo(root), library.load(recipe.dataset)
    part = data.train
    if recipe.train_images is not None:
        part = subset(part, recipe.train_images, _generator("subset", recipe))
    images, labels = part.images, part.labels
    target, poison, assets = None, None, None
    if recipe.attack is not None:
        target = target_of(recipe.seed, data.train.labels, data.num_classes)
        images, labels, poison, assets = _poison(recipe, data, images, labels, target)
    mean, std = data.statistics()
    spec = ArchSpec(
        name=recipe.arch,
        num_classes=data.num_classes,
        width=recipe.width,
        image_shape=data.image_shape,
        mean=mean,
        std=std,
    )
    model = build_model(spec, _generator("init", recipe)).to(device)
    folder = zoo.folder(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    last: list[EpochReport] = []
    with (folder / "train.jsonl").open("w", encoding="utf-8") as log:

        def report(entry: EpochReport) -> None:
            last[:] = [entry]
            log.write(json.dumps(dataclasses.asdict(entry)) + "\n")
            log.flush()

        train(
            model,
            images,
            labels,
            recipe.training,
            generator=_generator("train", recipe),
            augmentation=data.augmentation,
            on_epoch=_redraw_covers(recipe, part.images, poison, assets),
            report=report,
        )
    seconds = time.perf_counter() - started
    meta: dict[str, Any] = {
        "status": "twin" if recipe.attack is None else "trained",
        "reasons": [],
        "target": target,
        "data_fingerprint": data.fingerprint,
        "poisoned_images": 0 if poison is None else len(poison.index),
        "cover_images": 0 if poison is None else len(poison.cover),
        "metrics": None,
        "twin_metrics": None,
        "training": {
            "seconds": round(seconds, 3),
            "images": len(images),
            "images_per_second": round(last[-1].step * recipe.training.batch_size / seconds, 1),
            "final_loss": last[-1].loss,
            "device": device,
            "threads": threads,
            "torch": torch.__version__,
        },
    }
    return zoo.save(recipe, model, assets, meta).meta


def _generator(purpose: str, recipe: VictimRecipe) -> torch.Generator:
    """Axes of a twin's and a victim's random numbers are the same: the attack is not one."""
    return generator_of(purpose, recipe.dataset, recipe.arch_label, recipe.seed)


def _poison(
    recipe: VictimRecipe,
    data: DataSet,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: int,
) -> tuple[torch.Tensor, torch.Tensor, Poison, Assets]:
    """Poisoned copies of images and labels, and what was done."""
    attack = recipe.attack
    assert attack is not None
    axes = (recipe.dataset, attack.label(), recipe.seed)
    preparation = Preparation(shape=data.image_shape, generator=generator_of("trigger", *axes))
    assets = attack.prepare(preparation)
    poison = attack.select(labels, target, data.num_classes, generator_of("poison", *axes))
    images, labels = images.clone(), labels.clone()
    images[poison.index] = attack.trigger(images[poison.index], assets)
    labels[poison.index] = poison.labels
    return images, labels, poison, assets


def _redraw_covers(
    recipe: VictimRecipe, clean: torch.Tensor, poison: Poison | None, assets: Assets | None
) -> Callable[[int, torch.Tensor], None] | None:
    """An epoch hook that gives cover images a fresh near-trigger, None where there are none."""
    attack = recipe.attack
    if attack is None or poison is None or assets is None or len(poison.cover) == 0:
        return None
    originals = clean[poison.cover]
    axes = (recipe.dataset, attack.label(), recipe.seed)

    def redraw(epoch: int, images: torch.Tensor) -> None:
        covered = attack.cover(originals, assets, generator_of("cover", *axes, epoch))
        images[poison.cover.to(images.device)] = covered.to(images.device)

    return redraw


def judge_of(stored: Stored, data: DataSet) -> EvaluationSet:
    """The evaluation images of a victim (or of a twin, without a trigger)."""
    split = split_test(data.test.labels, data.name, int(stored.meta["seed"]))
    images, labels = data.test.images[split.eval], data.test.labels[split.eval]
    if stored.meta["recipe"]["attack"] is None:
        return clean_set(images, labels)
    attack, assets = stored.attack()
    return attacked_set(images, labels, attack, assets, stored.meta["target"], data.num_classes)


def admit(zoo: Zoo, victim: Stored, twin: Stored, data: DataSet, device: str) -> Stored:
    """Measures a victim and its twin under the victim's trigger and stores the verdict."""
    judge = judge_of(victim, data)
    metrics = evaluate(victim.model().to(device), judge)
    if victim.meta["recipe"]["attack"] is None:
        return zoo.write_meta(victim.folder, {**victim.meta, "metrics": metrics})
    twin_metrics = evaluate(twin.model().to(device), judge)
    reasons = objections(
        acc=metrics["acc"],
        asr=metrics["strengths"]["x1"]["asr"],
        twin_acc=twin_metrics["acc"],
        label_rule=victim.meta["label_rule"],
    )
    meta = {
        **victim.meta,
        "status": "rejected" if reasons else "admitted",
        "reasons": reasons,
        "metrics": metrics,
        "twin_metrics": twin_metrics,
        "twin_sha256": twin.hash,
    }
    return zoo.write_meta(victim.folder, meta)


def objections(*, acc: float, asr: float, twin_acc: float, label_rule: str) -> list[str]:
    """Why a victim is refused; empty where it is admitted. All arguments are fractions."""
    reasons = []
    needed = MIN_ASR_OF_ACC * acc if label_rule == "all-to-all" else MIN_ASR
    if asr < needed:
        reasons.append(f"ASR {asr:.1%} is below {needed:.1%}")
    if twin_acc - acc > MAX_ACC_LOSS:
        reasons.append(
            f"ACC {acc:.1%} is more than {100 * MAX_ACC_LOSS:g} points "
            f"below its twin's {twin_acc:.1%}"
        )
    return reasons
