"""The zoo on disk: one folder per victim with ``weights``, ``trigger`` and ``victim.json``.

Weights and triggers are safetensors, metadata is JSON; nothing is pickled. ``victim.json`` is
written last, so a folder without it is an interrupted build and is built again. No file holds an
absolute path: copying a folder merges it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks import Assets, Attack
from zoo.errors import StorageError, UserError
from zoo.files import file_digest, read_json, write_atomic
from zoo.models import ArchSpec, Classifier, build_model, shapes_of
from zoo.recipes import VictimRecipe, make_attack
from zoo.tensors import check_tensors, read_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A built victim or twin: its folder and its metadata."""

    folder: Path
    meta: dict[str, Any]

    @property
    def weights_path(self) -> Path:
        """``weights.safetensors``."""
        return self.folder / "weights.safetensors"

    @property
    def hash(self) -> str:
        """SHA-256 of the weights file."""
        return str(self.meta["weights_sha256"])

    @property
    def spec(self) -> ArchSpec:
        """How to build the classifier."""
        return ArchSpec.from_dict(self.meta["spec"])

    @property
    def admitted(self) -> bool:
        """Whether the gate let it in; twins are always in."""
        return self.meta["status"] in ("admitted", "twin")

    def checked_weights(self) -> Path:
        """The weights file, after a look at whether it is this victim's.

        Raises:
            UserError: another one, or damaged.
        """
        path = self.weights_path
        try:
            check_tensors(path, shapes_of(self.spec))  # first: a digest of a giant takes hours
            if file_digest(path) != self.hash:
                raise ValueError("it is not what victim.json says")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {path}: {error}. Delete the folder and build again"
            ) from error
        return path

    def model(self) -> Classifier:
        """The classifier with its weights, in eval mode, on the CPU."""
        path = self.checked_weights()
        model = build_model(self.spec)
        load_weights(model, read_tensors(path, shapes_of(self.spec)), str(path))
        return model

    def attack(self) -> tuple[Attack, Assets]:
        """The attack and its stored assets, so that the victim can be attacked again anywhere.

        Raises:
            UserError: this is a clean twin.
        """
        attack = self.meta["recipe"]["attack"]
        if attack is None:
            raise UserError(f"{self.meta['label']} is a clean twin and has no trigger")
        path = self.folder / "trigger.safetensors"
        assets = read_tensors(path)
        if file_digest(path) != self.meta["trigger_sha256"]:
            raise UserError(
                f"{path} is not the trigger of this victim. Delete the folder, build again"
            )
        assets.pop("none", None)
        made = make_attack(attack["name"], attack["params"])
        _try_out(made, assets, self.spec, path)
        return made, assets


class Zoo:
    """All stored victims below one root."""

    def __init__(self, root: Path) -> None:
        self.path = root / "zoo"

    def folder(self, recipe: VictimRecipe) -> Path:
        """Where a recipe's victim lives, built or not."""
        return self.path / recipe.folder()

    def find(self, recipe: VictimRecipe) -> Stored | None:
        """The victim of a recipe, None where it is not built yet.

        Raises:
            UserError: its metadata or weights are damaged.
        """
        folder = self.folder(recipe)
        path = folder / "victim.json"
        if not path.exists():
            return None
        from zoo.metadata import check_victim  # pydantic, which a child that defends does not need

        try:
            meta = read_json(path)
            if meta["recipe_hash"] != recipe.hash():
                return None
            return Stored(folder=folder, meta=check_victim(meta, _facts(recipe)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"cannot read {path}: {error}. Delete the folder and build again"
            ) from error

    def save(
        self,
        recipe: VictimRecipe,
        model: Classifier,
        assets: Assets | None,
        meta: dict[str, Any],
    ) -> Stored:
        """Stores a trained model and, for a victim, its trigger; metadata last."""
        folder = self.folder(recipe)
        weights = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        save_tensors(weights, folder / "weights.safetensors")
        if assets is not None:
            # safetensors refuses an empty file; a fixed pattern needs no assets.
            stored = assets or {"none": torch.zeros(1, dtype=torch.uint8)}
            save_tensors({k: v.cpu() for k, v in stored.items()}, folder / "trigger.safetensors")
            meta = {**meta, "trigger_sha256": file_digest(folder / "trigger.safetensors")}
        meta = {
            **meta,
            **_facts(recipe),
            "recipe": recipe.to_dict(),
            "spec": model.spec.to_dict(),
            "weights_sha256": file_digest(folder / "weights.safetensors"),
        }
        return self.write_meta(folder, meta)

    def write_meta(self, folder: Path, meta: dict[str, Any]) -> Stored:
        """Writes ``victim.json``."""
        text = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
        try:
            write_atomic(folder / "victim.json", text)
        except OSError as error:
            raise StorageError(f"cannot write {folder}: {error}. Is the disk full?") from error
        return Stored(folder=folder, meta=meta)


def _facts(recipe: VictimRecipe) -> dict[str, Any]:
    """What ``victim.json`` says of a recipe, for readers who do not know recipes."""
    return {
        "schema": 1,
        "label": recipe.label,
        "dataset": recipe.dataset,
        "arch": recipe.arch_label,
        "attack": recipe.attack_label,
        "label_rule": "none" if recipe.attack is None else recipe.attack.label_rule,
        "poison_rate": 0.0 if recipe.attack is None else recipe.attack.poison_rate,
        "seed": recipe.seed,
        "recipe_hash": recipe.hash(),
    }


def _try_out(attack: Attack, assets: Assets, spec: ArchSpec, path: Path) -> None:
    """Stamps one image: what a trigger's tensors must be like, only the attack knows."""
    image = torch.zeros(1, *spec.image_shape, dtype=torch.uint8)
    try:
        stamped = attack.trigger(image, assets)
        fits = stamped.shape == image.shape and stamped.dtype == image.dtype
    except Exception as error:  # whatever an attack does with tensors that are not its own
        raise UserError(
            f"{path} is no trigger of {attack.name}: {error}. Delete the folder, build again"
        ) from error
    if not fits:
        raise UserError(f"{path} is no trigger of {attack.name}. Delete the folder, build again")


def load_weights(model: Classifier, weights: dict[str, Tensor], name: str) -> None:
    """Loads weights strictly, with a message that names what does not fit.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        expected = tuple(own[key].shape) if key in own else "nothing"
        got = tuple(weights[key].shape) if key in weights else "nothing"
        if expected != got:
            raise UserError(f"{name}: {key}: expected {expected}, got {got}")
    model.load_state_dict(weights)
