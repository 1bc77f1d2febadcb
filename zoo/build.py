"""From a recipe to a victim: poison, train, store, judge.

:func:`build` trains and stores; :func:`admit` attacks the result and its clean twin on the
evaluation images and decides whether the victim may be used. :func:`training_set_of` makes the
training set of a stored victim again, which is not stored.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks import (
    TRAINING_ONLY,
    Assets,
    Attack,
    Companion,
    Poison,
    Preparation,
    Surrogate,
)
from zoo.allocator import keep_freed_memory
from zoo.assets import AssetStore
from zoo.checkpoint import CHECKPOINT, Checkpoint, identity_of
from zoo.data import DataSet, Library
from zoo.errors import StorageError, UserError
from zoo.evaluate import EvaluationSet, asr_by_part, attacked_set, clean_set, evaluate
from zoo.files import write_atomic
from zoo.models import Classifier, build_model
from zoo.recipes import VictimRecipe, make_attack, target_class
from zoo.seeds import generator_of
from zoo.splits import split_test, subset
from zoo.store import Stored, Zoo
from zoo.train import EpochHook, EpochReport, LossHook, Recipe, train


def check(recipe: VictimRecipe, data: DataSet) -> None:
    """Whether a victim can be built at all, before anything is trained.

    Raises:
        UserError: the target, the images or the classes do not fit the attack.
    """
    if recipe.attack is None:
        return
    target = target_class(recipe, data.train.labels, data.num_classes)
    labels = data.train.labels[_rows(recipe, data)]
    try:
        recipe.attack.check(labels, target, data.num_classes, data.image_shape)
    except ValueError as error:
        raise UserError(f"{recipe.label}: {error}") from error


def build(
    recipe: VictimRecipe, root: Path, library: Library, device: str, threads: int
) -> dict[str, Any]:
    """Trains one victim or twin and stores it under ``root``; returns its metadata.

    The progress of the training is in ``train.jsonl`` beside the weights, one line per epoch. An
    interrupted training goes on from its last checkpoint.

    Raises:
        UserError: the data is missing or damaged, the attack does not fit it, what it needs is not
            built, or the disk is full.
        DivergedError: the loss is no longer finite.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    zoo, data = Zoo(root), library.load(recipe.dataset)
    check(recipe, data)
    folder = zoo.folder(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    poisoning = _poison(recipe, data, root, device)
    model = _start(recipe, data, zoo).to(device)
    trained_on = {"images": poisoning.images, "labels": poisoning.labels}
    identity = identity_of(
        recipe.hash(), device, threads, trained_on, poisoning.assets, model.state_dict()
    )
    checkpoint = Checkpoint(folder / CHECKPOINT, identity, also=poisoning.companion)
    started = time.perf_counter()
    reports = _train(recipe, data, poisoning, model, checkpoint, folder / "train.jsonl")
    seconds = time.perf_counter() - started
    poison = poisoning.poison
    meta: dict[str, Any] = {
        "status": "twin" if recipe.attack is None else "trained",
        "reasons": [],
        "target": poisoning.target,
        "data_fingerprint": data.fingerprint,
        # A companion poisons a share of every batch anew, so that there is no number to tell.
        "poisoned_images": _count(poison) if poisoning.companion is None else None,
        "cover_images": 0 if poison is None else len(poison.cover),
        "metrics": None,
        "twin_metrics": None,
        "training": {
            "seconds": round(seconds, 3),  # since the last interruption, as is the next
            "images_per_second": round(len(reports) * len(poisoning.images) / seconds, 1),
            "images": len(poisoning.images),
            "final_loss": reports[-1].loss,
            "device": device,
            "threads": threads,
            "torch": torch.__version__,
        },
    }
    stored = zoo.save(recipe, model, poisoning.stored_assets(), meta)
    checkpoint.discard()
    return stored.meta


def _count(poison: Poison | None) -> int:
    return 0 if poison is None else len(poison.index)


@dataclass(frozen=True, kw_only=True)
class _Poisoning:
    """The training set as the attacker made it; without an attack, the clean one."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    target: int | None = None
    poison: Poison | None = None
    assets: Assets | None = None
    covered: Tensor | None = None  # the images at poison.cover, as they were
    companion: Companion | None = None

    def stored_assets(self) -> Assets | None:
        """What belongs to the trigger and not to the training; None without an attack."""
        assets = self.assets if self.companion is None else self.companion.assets()
        if assets is None:
            return None
        return {k: v for k, v in assets.items() if not k.startswith(TRAINING_ONLY)}


def preparation_of(
    recipe: VictimRecipe,
    attack: Attack,
    data: DataSet,
    store: AssetStore,
    model: Surrogate | None = None,
) -> Preparation:
    """What the attacker of a victim works from; what is prepared from it is the victim's trigger.

    Raises:
        UserError: a material that the attack needs is not built, or is damaged.
    """
    rows = _rows(recipe, data)
    part = data.train.take(rows)
    target = target_class(recipe, data.train.labels, data.num_classes)
    return Preparation(
        images=part.images,
        labels=part.labels,
        rows=rows,
        target=target,
        num_classes=data.num_classes,
        generator=generator_of("trigger", recipe.dataset, attack.label(), recipe.seed),
        model=model,
        materials={
            made.material: store.tensors(made)
            for made in recipe.materials(target, data.num_classes)
        },
    )


def _poison(recipe: VictimRecipe, data: DataSet, root: Path, device: str) -> _Poisoning:
    attack = recipe.attack
    if attack is None:
        part = data.train.take(_rows(recipe, data))
        return _Poisoning(images=part.images, labels=part.labels)
    twin = None if attack.tuning is None else _twin(recipe, Zoo(root)).to(device)
    preparation = preparation_of(recipe, attack, data, AssetStore(root), twin)
    target = preparation.target
    try:
        assets = attack.prepare(preparation)
        labels = preparation.labels.repeat(attack.copies)
        draw = generator_of("poison", recipe.dataset, attack.label(), recipe.seed)
        poison = attack.select(labels, target, data.num_classes, draw, assets)
    except ValueError as error:
        raise UserError(f"{recipe.label}: {error}") from error
    images = preparation.images.repeat(attack.copies, 1, 1, 1)
    images[poison.index] = attack.poisoned(images[poison.index], poison, assets)
    labels[poison.index] = poison.labels
    return _Poisoning(
        images=images,
        labels=labels,
        target=target,
        poison=poison,
        assets=assets,
        covered=images[poison.cover] if len(poison.cover) else None,
        companion=attack.companion(preparation, assets, torch.device(device)),
    )


def no_training_set(stored: Stored) -> str:
    """Why a model has no training set that somebody could train from anew; empty where it has."""
    attack = stored.meta["recipe"]["attack"]
    if attack is None:
        return ""
    if make_attack(attack["name"], attack["params"]).tuning is not None:
        return "the victim is its clean twin, tuned: it was not trained from a poisoned set"
    if not stored.meta["poisoned_images"]:
        return "the victim's poison was made anew in every batch: there is no poisoned set"
    return ""


def training_set_of(stored: Stored, root: Path, library: Library) -> tuple[Tensor, Tensor]:
    """What a stored model was trained on, as the attacker made it; cover images as at the start.

    Returns:
        Images ``uint8 (N, C, H, W)``, not augmented, and labels ``int64 (N,)``, in the order of the
        training.

    Raises:
        UserError: what the attack needs is not there any more, or what comes out is not what the
            model was trained on.
        ValueError: it has none, see :func:`no_training_set`.
    """
    if reason := no_training_set(stored):
        raise ValueError(reason)
    recipe = VictimRecipe.from_dict(stored.meta["recipe"])
    data = library.load(recipe.dataset)
    poisoning = _poison(recipe, data, root, "cpu")
    if data.fingerprint != stored.meta["data_fingerprint"] or not _is_of(poisoning, stored):
        raise UserError(
            f"{recipe.label}: the training set comes out otherwise than when the victim was "
            "trained: the data or the attack have changed. Delete its folder and build it again"
        )
    if (redraw := _redraw_covers(recipe, poisoning)) is not None:
        redraw(0, poisoning.images)
    return poisoning.images, poisoning.labels


def clean_training_set_of(stored: Stored, data: DataSet) -> tuple[Tensor, Tensor]:
    """The images that a stored model was trained on before any was poisoned, and their labels.

    Returns:
        ``uint8 (N, C, H, W)`` and ``int64 (N,)``, in the order of the data set.
    """
    part = data.train.take(_rows(VictimRecipe.from_dict(stored.meta["recipe"]), data))
    return part.images, part.labels


def _is_of(poisoning: _Poisoning, stored: Stored) -> bool:
    """Whether a training set has the numbers of a stored model's, and its trigger.

    Another processor may compute the trigger with other last bits.
    """
    counts = (len(poisoning.images), _count(poisoning.poison))
    if counts != (stored.meta["training"]["images"], stored.meta["poisoned_images"]):
        return False
    assets = poisoning.stored_assets()
    if assets is None:
        return True
    known = stored.attack()[1]
    return assets.keys() == known.keys() and all(
        known[k].shape == assets[k].shape
        and torch.allclose(known[k].double(), assets[k].double(), rtol=1e-4, atol=1e-4)
        for k in known
    )


def _rows(recipe: VictimRecipe, data: DataSet) -> Tensor:
    """Which rows of the training part a victim and its twin are trained on."""
    size = len(data.train) if recipe.train_images is None else recipe.train_images
    return subset(data.train, size, _generator("subset", recipe))


def _start(recipe: VictimRecipe, data: DataSet, zoo: Zoo) -> Classifier:
    """The classifier before training: fresh, or the clean twin for an attack that edits one."""
    tuning = None if recipe.attack is None else recipe.attack.tuning
    if tuning is None:
        return build_model(data.arch_spec(recipe.arch, recipe.width), _generator("init", recipe))
    model = _twin(recipe, zoo)
    if tuning.head_only:
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    return model


def _twin(recipe: VictimRecipe, zoo: Zoo) -> Classifier:
    twin = zoo.find(recipe.twin())
    if twin is None:
        raise UserError(f"{recipe.label} starts from its clean twin, which is not built")
    return twin.model()


def training_of(recipe: VictimRecipe) -> Recipe:
    """How a victim is trained: the profile's schedule, or the attack's own where it edits a twin.

    Where the poisoned set is several copies of the training set, the optimiser steps stay the same.
    """
    training, attack = recipe.training, recipe.attack
    if attack is None:
        return training
    if (tuning := attack.tuning) is not None:
        return Recipe(
            epochs=tuning.epochs,
            batch_size=tuning.batch_size,
            lr=tuning.lr,
            momentum=tuning.momentum,
            schedule="constant",
            freeze_bn=tuning.head_only,
        )
    return dataclasses.replace(training, epochs=max(1, round(training.epochs / attack.copies)))


def _train(
    recipe: VictimRecipe,
    data: DataSet,
    poisoning: _Poisoning,
    model: Classifier,
    checkpoint: Checkpoint,
    log: Path,
) -> list[EpochReport]:
    """Trains in place; returns the reports of this process."""
    companion = poisoning.companion
    tuning = None if recipe.attack is None else recipe.attack.tuning
    loss: LossHook | None = None if companion is None else companion.loss
    if tuning is not None and tuning.head_only:
        loss = head_loss
    reports: list[EpochReport] = []

    def report(entry: EpochReport) -> None:
        reports.append(entry)
        kept = log.read_text(encoding="utf-8").splitlines(True) if log.exists() else []
        line = json.dumps(dataclasses.asdict(entry)) + "\n"
        try:
            write_atomic(log, "".join([*kept[: entry.epoch], line]))
        except OSError as error:
            raise StorageError(f"cannot write {log}: {error}. Is the disk full?") from error

    train(
        model,
        poisoning.images,
        poisoning.labels,
        training_of(recipe),
        generator=_generator("train", recipe),
        augmentation=data.augmentation,
        loss=loss,
        after_step=None if companion is None else companion.step,
        on_epoch=_redraw_covers(recipe, poisoning),
        report=report,
        checkpoint=checkpoint,
    )
    return reports


def head_loss(model: Classifier, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Cross-entropy of the head on the features that it will be given after training.

    A body that is not trained works as it does in use: with its batch statistics, and without
    dropout, which would hide from the head most of what a small patch does to the features.
    """
    del progress
    model.eval()
    with torch.no_grad():
        features = model.features(images)
    return F.cross_entropy(model.head(features).float(), labels)


def _generator(purpose: str, recipe: VictimRecipe) -> torch.Generator:
    """Axes of a twin's and a victim's random numbers are the same: the attack is not one."""
    return generator_of(purpose, recipe.dataset, recipe.arch_label, recipe.seed)


def _redraw_covers(recipe: VictimRecipe, poisoning: _Poisoning) -> EpochHook | None:
    """An epoch hook that gives cover images a fresh near-trigger, None where there are none."""
    attack, poison, assets = recipe.attack, poisoning.poison, poisoning.assets
    originals = poisoning.covered
    if attack is None or poison is None or assets is None or originals is None:
        return None
    axes = (recipe.dataset, attack.label(), recipe.seed)

    def redraw(epoch: int, images: Tensor) -> None:
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
    attack, _ = victim.attack()
    asr = metrics["strengths"]["x1"]["asr"]
    reasons = objections(attack, acc=metrics["acc"], asr=asr, twin_acc=twin_metrics["acc"])
    meta = {
        **victim.meta,
        "status": "rejected" if reasons else "admitted",
        "reasons": reasons,
        "metrics": metrics,
        "twin_metrics": twin_metrics,
        "twin_sha256": twin.hash,
        "asr_by_part": asr_by_part(victim.model().to(device), judge, attack.parts),
    }
    return zoo.write_meta(victim.folder, meta)


def objections(attack: Attack, *, acc: float, asr: float, twin_acc: float) -> list[str]:
    """Why a victim is refused; empty where it is admitted. All figures are fractions."""
    reasons = []
    # Under all-to-all a success is another class's image seen right, so ACC bounds ASR.
    needed = attack.min_asr * (acc if attack.label_rule == "all-to-all" else 1)
    if asr < needed:
        reasons.append(f"ASR {asr:.1%} is below {needed:.1%}")
    if twin_acc - acc > attack.max_acc_loss:
        reasons.append(
            f"ACC {acc:.1%} is more than {100 * attack.max_acc_loss:g} points "
            f"below its twin's {twin_acc:.1%}"
        )
    return reasons
