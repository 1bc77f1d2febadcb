"""Building assets: training of surrogates, optimising materials on them, and priors."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks import Preparation
from zoo.allocator import keep_freed_memory
from zoo.asset_recipes import AssetRecipe, MaterialRecipe, PriorRecipe, SurrogateRecipe
from zoo.assets import AssetStore
from zoo.checkpoint import CHECKPOINT, Checkpoint, identity_of
from zoo.data import DataSet, Library
from zoo.models import build_model
from zoo.pgd import adversarial_loss
from zoo.prior_asset import figures_of, fingerprint_of, pool_of, train_prior_asset
from zoo.recipes import VictimRecipe
from zoo.seeds import generator_of
from zoo.splits import subset
from zoo.store import Zoo
from zoo.train import predict_logits, train


def build_asset(
    recipe: AssetRecipe,
    root: Path,
    library: Library,
    device: str,
    threads: int,
    judge: VictimRecipe | None = None,
) -> None:
    """Builds one surrogate, material or prior and stores it under ``root``.

    Args:
        recipe: what to build.
        root: where everything is stored.
        library: the data sets.
        device: where to train.
        threads: how many a CPU uses.
        judge: a clean twin with which a prior is measured, if it is built.

    Raises:
        UserError: the data is missing or damaged, a surrogate is not built, or the disk is full.
        DivergedError: the loss of a surrogate or the gap of a prior is no longer finite.
    """
    torch.set_num_threads(threads)
    store = AssetStore(root)
    store.folder(recipe).mkdir(parents=True, exist_ok=True)
    path = store.folder(recipe) / CHECKPOINT
    started = time.perf_counter()
    if isinstance(recipe, SurrogateRecipe):
        data = library.load(recipe.dataset)
        tensors, meta = _train_surrogate(recipe, data, path, device, threads)
    elif isinstance(recipe, PriorRecipe):
        tensors, meta = _train_prior(recipe, library, path, device, threads, Zoo(root), judge)
    else:
        data = library.load(recipe.surrogate.dataset)
        tensors, meta = _build_material(recipe, data, store, device)
    meta |= {
        "seconds": round(time.perf_counter() - started, 3),
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
    }
    store.save(recipe, tensors, meta)
    path.unlink(missing_ok=True)


def _train_surrogate(
    recipe: SurrogateRecipe, data: DataSet, path: Path, device: str, threads: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what is worth knowing about them."""
    part = data.train
    if recipe.train_images is not None:
        part = part.take(subset(part, recipe.train_images, _generator("subset", recipe)))
    spec = data.arch_spec(recipe.arch, recipe.width)
    model = build_model(spec, _generator("init", recipe)).to(device)
    training, loss = recipe.training, None
    if recipe.robust is not None:
        training = dataclasses.replace(training, epochs=recipe.robust.epochs)
        loss = adversarial_loss(
            epsilon=recipe.robust.epsilon,
            steps=recipe.robust.steps,
            seed=_generator("pgd", recipe).initial_seed(),
        )
    trained_on = {"images": part.images, "labels": part.labels}
    identity = identity_of(recipe.hash(), device, threads, trained_on, model.state_dict())
    train(
        model,
        part.images,
        part.labels,
        training,
        generator=_generator("train", recipe),
        augmentation=data.augmentation,
        loss=loss,
        checkpoint=Checkpoint(path, identity),
    )
    predicted = predict_logits(model, data.test.images).argmax(dim=1).cpu()
    acc = float((predicted == data.test.labels).double().mean())
    meta = {"spec": spec.to_dict(), "acc": acc, "data_fingerprint": data.fingerprint}
    return dict(model.state_dict()), meta


def _train_prior(
    recipe: PriorRecipe,
    library: Library,
    path: Path,
    device: str,
    threads: int,
    zoo: Zoo,
    judge: VictimRecipe | None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of both networks, and how good they are."""
    keep_freed_memory()
    pool = pool_of(recipe, library)
    nets = train_prior_asset(recipe, pool, path, device, threads)
    twin = None if judge is None else zoo.find(judge)
    model = None if twin is None else twin.model().to(device)
    meta = {
        "figures": figures_of(nets, pool, recipe, model),
        "judge": None if twin is None else {"label": twin.meta["label"], "sha256": twin.hash},
        "data_fingerprint": fingerprint_of(pool),
    }
    return nets.tensors(), meta


def _build_material(
    recipe: MaterialRecipe, data: DataSet, store: AssetStore, device: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    model = store.surrogate(recipe.surrogate).to(device).requires_grad_(False)
    axes = (recipe.surrogate.dataset, recipe.surrogate.arch_label, recipe.material.name)
    preparation = Preparation(
        images=data.train.images,
        labels=data.train.labels,
        rows=torch.arange(len(data.train)),
        target=-1,
        num_classes=data.num_classes,
        generator=generator_of("material", *axes),
        model=model,
    )
    return recipe.material.build(preparation), {"data_fingerprint": data.fingerprint}


def _generator(purpose: str, recipe: SurrogateRecipe) -> torch.Generator:
    """No surrogate shares its random numbers with a victim or a twin."""
    return generator_of("surrogate", recipe.kind, purpose, recipe.dataset, recipe.arch_label)
