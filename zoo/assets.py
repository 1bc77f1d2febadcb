"""What victims share, on disk: ``tensors.safetensors`` and, written last, ``asset.json``.

Each surrogate, material and prior is built once and found again by the hash of its recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from zoo.asset_recipes import AssetRecipe, PriorRecipe, SurrogateRecipe
from zoo.errors import StorageError, UserError
from zoo.files import file_digest, read_json, write_atomic
from zoo.models import ArchSpec, Classifier, build_model, shapes_of
from zoo.prior import PriorNets, load_prior, prior_shapes
from zoo.store import load_weights
from zoo.tensors import read_tensors, save_tensors

_TENSORS: Final = "tensors.safetensors"


def _facts(recipe: AssetRecipe) -> dict[str, Any]:
    """What ``asset.json`` says of a recipe, for readers who do not know recipes."""
    return {"schema": 1, "label": recipe.label, "recipe_hash": recipe.hash()}


class AssetStore:
    """All stored assets below one root."""

    def __init__(self, root: Path) -> None:
        self.path = root / "assets"

    def folder(self, recipe: AssetRecipe) -> Path:
        """Where an asset lives, built or not."""
        return self.path / recipe.folder()

    def find(self, recipe: AssetRecipe) -> dict[str, Any] | None:
        """The metadata of an asset, None where it is not built yet.

        Raises:
            UserError: it is damaged.
        """
        path = self.folder(recipe) / "asset.json"
        if not path.exists():
            return None
        from zoo.metadata import check_asset  # pydantic, which a child that defends does not need

        try:
            meta = read_json(path)
            if meta["recipe_hash"] != recipe.hash():
                return None
            return check_asset(meta, _facts(recipe))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"cannot read {path}: {error}. Delete the folder and build again"
            ) from error

    def save(self, recipe: AssetRecipe, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Stores tensors and metadata, metadata last."""
        folder = self.folder(recipe)
        save_tensors({k: v.detach().cpu() for k, v in tensors.items()}, folder / _TENSORS)
        meta = {
            **meta,
            **_facts(recipe),
            "recipe": recipe.to_dict(),
            "tensors_sha256": file_digest(folder / _TENSORS),
        }
        text = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
        try:
            write_atomic(folder / "asset.json", text)
        except OSError as error:
            raise StorageError(f"cannot write {folder}: {error}. Is the disk full?") from error

    def path_of(self, recipe: AssetRecipe) -> Path:
        """Where its tensors lie."""
        return self.folder(recipe) / _TENSORS

    def tensors(
        self, recipe: AssetRecipe, like: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of a built asset.

        Args:
            recipe: the asset's.
            like: tensors of the names and shapes that they must have, where these are known.

        Raises:
            UserError: not built, damaged, or not what its metadata says.
        """
        meta = self.find(recipe)
        if meta is None:
            raise UserError(f"{recipe.label}: not built yet; run: bench build-zoo")
        path = self.path_of(recipe)
        tensors = read_tensors(path, like)
        if file_digest(path) != meta["tensors_sha256"]:
            raise UserError(f"{path} is not what asset.json says. Delete the folder, build again")
        return tensors

    def surrogate(self, recipe: SurrogateRecipe) -> Classifier:
        """A built surrogate, in eval mode, on the CPU."""
        meta = self.find(recipe)
        if meta is None or meta.get("spec") is None:
            raise UserError(f"{recipe.label}: not built yet; run: bench build-zoo")
        spec = ArchSpec.from_dict(meta["spec"])
        tensors = self.tensors(recipe, shapes_of(spec))
        model = build_model(spec)
        load_weights(model, tensors, str(self.folder(recipe)))
        return model

    def prior(self, recipe: PriorRecipe) -> PriorNets:
        """A built prior, in eval mode, on the CPU."""
        try:
            return load_prior(recipe.spec, self.tensors(recipe, prior_shapes(recipe.spec)))
        except RuntimeError as error:
            raise UserError(f"{self.folder(recipe)}: {error}") from error
