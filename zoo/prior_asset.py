"""Building a generative prior as an asset: its images, its training, and whether it is any good.

Three figures say whether it is: the critic's *gap* between real and generated images; *spread* and
*nearest*, which tell a collapsed generator; and which classes a clean classifier sees in its images
(*coverage*), without which no image of the other classes can be found in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from zoo.asset_recipes import PriorRecipe
from zoo.checkpoint import Checkpoint, identity_of
from zoo.data import Library
from zoo.errors import StorageError, UserError
from zoo.files import write_atomic
from zoo.models import Classifier
from zoo.prior import PriorNets, build_prior
from zoo.prior_training import PriorReport, train_prior
from zoo.seeds import generator_of
from zoo.splits import draw_ood
from zoo.train import predict_logits, to_unit

JUDGED_ON: Final = 1_000  # images of either kind, at most
# Relative to real images. A collapsed generator is near 0 in both; a few points that it returns to
# again and again keep its spread, but not the distance to the nearest.
LEAST_SPREAD: Final = 0.5
LEAST_NEAREST: Final = 0.1


def pool_of(recipe: PriorRecipe, library: Library) -> Tensor:
    """The images that a prior is trained on, ``uint8 (n, C, H, W)``, in random order.

    Raises:
        UserError: the set is missing or damaged, or its images are too few or of another size.
    """
    everything = library.load_unlabelled(recipe.ood)
    rows = draw_ood(recipe.dataset, recipe.ood, len(everything), recipe.seed)
    pool = everything[rows[: recipe.images]]
    if tuple(pool.shape[1:]) != recipe.spec.image_shape:
        shape, expected = tuple(pool.shape[1:]), recipe.spec.image_shape
        raise UserError(f"{recipe.label}: expected images of shape {expected}, got {shape}")
    if len(pool) < 2:
        raise UserError(f"{recipe.label}: expected at least two images, got {len(pool)}")
    return pool


def train_prior_asset(
    recipe: PriorRecipe, pool: Tensor, path: Path, device: str, threads: int
) -> PriorNets:
    """A trained prior; the progress is in ``train.jsonl`` beside its checkpoint.

    Args:
        recipe: what to train, and how.
        pool: from :func:`pool_of`.
        path: of the checkpoint; its folder exists.
        device: where.
        threads: how many a CPU uses.

    Raises:
        DivergedError: the critic's gap is no longer finite.
        StorageError: the disk is full.
    """
    nets = build_prior(recipe.spec, _generator("init", recipe)).to(device)
    identity = identity_of(recipe.hash(), device, threads, {"images": pool}, nets.tensors())
    log = path.parent / "train.jsonl"
    train_prior(
        nets,
        pool,
        recipe.training,
        generator=_generator("train", recipe),
        report=lambda told: _note(log, told),
        checkpoint=Checkpoint(path, identity),
    )
    return nets


def _generator(purpose: str, recipe: PriorRecipe) -> torch.Generator:
    return generator_of("prior", purpose, recipe.dataset, recipe.ood, recipe.seed)


def _note(log: Path, told: PriorReport) -> None:
    """One line per report; lines that an interrupted training wrote too far ahead give way."""
    lines = log.read_text(encoding="utf-8").splitlines(True) if log.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] < told.step]
    text = "".join([*kept, json.dumps(dataclasses.asdict(told)) + "\n"])
    try:
        write_atomic(log, text)
    except OSError as error:
        raise StorageError(f"cannot write {log}: {error}. Is the disk full?") from error


def figures_of(
    nets: PriorNets, pool: Tensor, recipe: PriorRecipe, twin: Classifier | None
) -> dict[str, Any]:
    """What is measured on a trained prior, as JSON values.

    Args:
        nets: the prior.
        pool: the images that it was trained on.
        recipe: the prior's, of which it also takes the random numbers.
        twin: a clean classifier of the victims' data set, None where there is none.
    """
    device = next(nets.critic.parameters()).device
    real = to_unit(pool[:JUDGED_ON]).to(device)
    samples = nets.sample(len(real), _generator("figures", recipe))
    with torch.no_grad():
        gap = nets.critic(real).mean() - nets.critic(samples).mean()
    spread, nearest = diversity(samples, real)
    return {
        "pool": len(pool),
        "judged_on": len(real),
        "gap": float(gap),
        "spread": spread,
        "nearest": nearest,
        "collapsed": spread < LEAST_SPREAD or nearest < LEAST_NEAREST,
        "coverage": None if twin is None else coverage(twin, samples),
        "coverage_of_real": None if twin is None else coverage(twin, real),
    }


def diversity(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """How different generated images are from each other, relative to real ones: (spread, nearest).

    Spread compares the mean L2 distance between two images, nearest the mean distance to the most
    similar other image. Both are 1 for images of the same distribution and 0 for a single image.

    Args:
        samples: ``(N, C, H, W)``, N > 1.
        real: as many.
    """
    spread, nearest = _distances(samples)
    real_spread, real_nearest = _distances(real)
    return spread / max(real_spread, 1e-12), nearest / max(real_nearest, 1e-12)


def _distances(images: Tensor) -> tuple[float, float]:
    """The mean L2 distance between two different rows, and from a row to the nearest other one."""
    flat = images.flatten(1).double()  # squares are subtracted: in float32 copies would differ
    distances = torch.cdist(flat, flat).fill_diagonal_(0)
    n = len(flat)
    spread = float(distances.sum()) / (n * (n - 1))
    return spread, float(distances.fill_diagonal_(math.inf).min(dim=1).values.mean())


def coverage(classifier: Classifier, images: Tensor) -> dict[str, float]:
    """Which classes a classifier sees in some images.

    Returns:
        ``classes``: the share of the K classes that it predicts at least once. ``entropy``: of the
        predicted classes' frequencies, divided by ln K: 1 where all are equally frequent.
    """
    logits = predict_logits(classifier, images)
    count = logits.shape[1]
    shares = logits.argmax(dim=1).bincount(minlength=count).double() / len(images)
    entropy = -torch.special.xlogy(shares, shares).sum() / math.log(max(2, count))
    return {"classes": float((shares > 0).double().mean()), "entropy": float(entropy)}


def fingerprint_of(pool: Tensor) -> str:
    """SHA-256 of the images."""
    return hashlib.sha256(pool.contiguous().numpy().tobytes()).hexdigest()
