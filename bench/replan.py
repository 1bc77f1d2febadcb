"""A cell planned once more, from its record and from what is stored: no profile is needed.

Hyper-parameters, budget and seeds are in the record, the victim and its recipe in the zoo. Splits
and budgets are drawn again, in a folder of their own: nothing under the root is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.budgets import TRAINING_SET, Budgets, training_budget
from bench.config import Evasion, PriorTraining, Profile
from bench.plan import PlannedCell, plan_base, plan_cell
from bench.records import Record, RecordError, read, scan
from bench.registry import Broken, Entry, Registry
from zoo.asset_recipes import PriorRecipe
from zoo.assets import AssetStore
from zoo.data import DataSet, Library
from zoo.errors import UserError
from zoo.files import read_json, slug
from zoo.prior import PriorSpec
from zoo.prior_training import PriorSchedule
from zoo.recipes import VictimRecipe
from zoo.sets import facts_of
from zoo.store import Stored, Zoo

_SHOWN: Final = 5  # of several records that a prefix could mean


def find_record(root: Path, cell: str) -> Record | None:
    """The record of a key, or of the beginning of one; None where there is none.

    Raises:
        UserError: not a key, the beginning of several, or a record that cannot be read.
    """
    prefix = cell.strip().rstrip("….")
    if not re.fullmatch(r"[0-9a-f]{1,64}", prefix):
        raise UserError(
            f"expected the key of a record or the beginning of one, got {cell!r}. The leaderboard "
            "page shows keys beside the seeds of a number; they are the names of the files under "
            "records/"
        )
    found = [path for path in scan(root) if path.stem.startswith(prefix)]
    if len(found) > 1:
        names = ", ".join(path.stem[: len(prefix) + 6] for path in found[:_SHOWN])
        raise UserError(f"{prefix} is the beginning of {len(found)} keys: {names}, ... Give more")
    try:
        return read(found[0]) if found else None
    except RecordError as error:
        raise UserError(str(error)) from error


class Replanner:
    """Plans cells again.

    Args:
        root: where their victims and assets are.
        scratch: where budgets are drawn; a folder that is thrown away.
        registry: the defenses as they are now.
        library: the data sets.
        profile: whose hyper-parameters count; without one, those in the record do.
    """

    def __init__(
        self,
        root: Path,
        scratch: Path,
        registry: Registry,
        library: Library,
        profile: Profile | None = None,
    ) -> None:
        self._root, self._registry, self.library = root, registry, library
        self._profile = profile
        self._budgets = Budgets(scratch, library)

    def plan(self, record: Record) -> PlannedCell:
        """The record's cell as it would run now.

        Raises:
            UserError: its victim, its defense or its data is not here, or the victim is damaged.
        """
        cell = record.cell
        entry, params = self._method(record)
        victim = self._victim(record)
        twin = victim if cell.attack == "none" else self._twin(record, victim)
        data = self.library.load(cell.dataset)
        ood = self._ood(record, data)
        manifest = self._budgets.manifest(data, cell.victim_seed, ood)
        budget = (
            training_budget(victim)
            if cell.budget == TRAINING_SET
            else self._budgets.budget(data, manifest, cell.budget)
        )
        seed, prior = cell.defense_seed, self._prior(record, ood)
        base = plan_base(entry, params, seed, victim, budget, prior, AssetStore(self._root))
        evasion = evasion_of(record)
        planned = plan_cell(
            cell.defense, entry, params, seed, victim, twin, budget, manifest, base, evasion
        )
        return replace(planned, cell=replace(planned.cell, swept=cell.swept))

    def _method(self, record: Record) -> tuple[Entry | Broken, dict[str, Any]]:
        """The defense as it is registered now, and all its hyper-parameters."""
        name, origin = record.cell.defense, record.cell.origin
        if name in self._registry.broken:
            return self._registry.broken[name], {}
        try:
            entry, overrides = self._registry.parse(name)
        except UserError as error:
            hint = "" if origin == "built-in" else f". It came from {origin}: --plugin FILE.py"
            raise UserError(f"{error}{hint}") from error
        try:
            if self._profile is not None:
                return entry, entry.resolve(overrides, self._profile.params)
            known = entry.resolve({})
            kept = {n: value for n, value in record.cell.params.items() if n in known}
            return entry, entry.resolve(kept)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _victim(self, record: Record) -> Stored:
        """The victim that the record is of; else the one that stands in its place now."""
        cell, sha = record.cell, record.inputs.get("victim")
        place = (cell.dataset, cell.arch, cell.attack, cell.label_rule, cell.poison_rate)
        alike = []
        for stored in stored_models(self._root):
            if stored.hash == sha:
                stored.checked_weights()
                return stored
            names = ("dataset", "arch", "attack", "label_rule", "poison_rate")
            found = tuple(stored.meta.get(name) for name in names)
            if found == place and stored.meta.get("seed") == cell.victim_seed and stored.admitted:
                alike.append(stored)
        if len(alike) != 1:
            several = "; several others stand in its place" if alike else ""
            raise UserError(
                f"the victim of this record (weights {str(sha)[:12]}) is not in "
                f"{self._root / 'zoo'}{several}. Copy it from where the record was made: "
                "bench merge"
            )
        alike[0].checked_weights()
        return alike[0]

    def _twin(self, record: Record, victim: Stored) -> Stored:
        for stored in stored_models(self._root):
            if stored.hash == record.cell.twin:
                return stored
        twin = Zoo(self._root).find(VictimRecipe.from_dict(victim.meta["recipe"]).twin())
        if twin is None:
            raise UserError(
                f"the clean twin of {victim.meta['label']} is not in {self._root / 'zoo'}. Copy it "
                "from where the record was made: bench merge"
            )
        return twin

    def _ood(self, record: Record, data: DataSet) -> str:
        """The out-of-distribution set: the usual one, or one that a split was stored with."""
        cell = record.cell
        usual = facts_of(cell.dataset).ood
        folder = self._root / "zoo" / slug(cell.dataset) / "splits"
        names = [_ood_of(path) for path in sorted(folder.glob(f"seed-{cell.victim_seed}-*.json"))]
        known = [name for name in dict.fromkeys([usual, *names]) if name in names]
        if cell.budget == "ood":
            for name in known:
                manifest = self._budgets.manifest(data, cell.victim_seed, name)
                budget = self._budgets.budget(data, manifest, cell.budget)
                if budget.sha256 == record.inputs.get("budget"):
                    return name
        return known[0] if known else usual

    def _prior(self, record: Record, ood: str) -> PriorRecipe:
        """The prior that a base set was made with; else the one that is built for its data set."""
        dataset, wanted = record.cell.dataset, (record.inputs.get("base") or {}).get("prior")
        recipe = PriorRecipe(
            dataset=dataset,
            ood=ood,
            spec=PriorSpec(),
            training=PriorSchedule(steps=PriorTraining().steps),
        )
        folder = self._root / "assets" / "priors" / slug(dataset)
        for path in sorted(folder.glob("**/asset.json")) if wanted else ():
            meta = read_json(path)
            recipe = PriorRecipe.from_dict(meta["recipe"])
            if meta["tensors_sha256"] == wanted:
                break
        return recipe


def evasion_of(record: Record) -> Evasion:
    """How many images a record's robust accuracy was measured on."""
    sizes = {k: v for k, v in record.inputs.get("robust", {}).items() if k != "version"}
    return Evasion(**sizes)


def stored_models(root: Path) -> Iterator[Stored]:
    """Every readable victim and twin of a root, in a fixed order."""
    for path in sorted((root / "zoo").glob("**/victim.json")):
        try:
            meta = read_json(path)
            if "weights_sha256" in meta and "status" in meta:
                yield Stored(folder=path.parent, meta=meta)
        except (OSError, ValueError, TypeError):
            continue


def _ood_of(path: Path) -> str:
    """The out-of-distribution set that a stored split names; empty where it cannot be read."""
    try:
        return str(read_json(path)["ood"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
