"""From a profile to victims and cells, each cell with the key that says whether it is fresh.

A key is the SHA-256 of a cell's *inputs*: code, hyper-parameters, weights, data, metric version,
seed. Never a path, a host, a time or an order, so records can be copied between machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench.base_sets import SCHEMA as BASE_SET_SCHEMA
from bench.base_sets import PlannedBase, refusal
from bench.budgets import TRAINING_SET, Budget, Budgets, Manifest, training_budget
from bench.codehash import file_hashes, file_of
from bench.config import Evasion, Grid, Profile
from bench.priors import prior_of
from bench.records import FAILED, SCHEMA, Cell, Record, RecordError, digest, path_of, read
from bench.registry import Broken, Entry, Registry
from bench.robustness import inputs_of, panel_of
from bench.specs import bare, parse_spec, split_params
from zoo.asset_recipes import PriorRecipe, Robust
from zoo.assets import AssetStore
from zoo.build import no_training_set
from zoo.data import DataSet, Library
from zoo.errors import UserError
from zoo.evaluate import METRIC_VERSION
from zoo.recipes import VictimRecipe, make_attack
from zoo.seeds import seed_of
from zoo.store import Stored, Zoo
from zoo.train import Recipe

State = Literal["fresh", "stale", "missing", "failed"]
# What this version of the harness can hand to a defense.
_GRANTED: Final = ("nothing", "images", "labels", "optional", "poisoned-train", "target")


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell that can be run: everything the harness needs, and its key."""

    cell: Cell
    inputs: dict[str, Any]
    key: str
    victim: Stored
    twin: Stored
    budget: Budget
    entry: Entry | Broken
    seed: int  # of the defense's random numbers
    not_applicable: str = ""  # why it needs no run
    base: PlannedBase | None = None  # what the defense is given in place of the budget
    sources: dict[str, str] = field(default_factory=dict)  # see :func:`sources_of`

    @property
    def label(self) -> str:
        """One line that names the cell to a person."""
        c = self.cell
        return f"{c.defense} @{c.budget} on {c.dataset} {c.arch} {c.attack} s{c.victim_seed}"


def plan_victims(profile: Profile) -> list[tuple[VictimRecipe, Grid]]:
    """All victims of a profile, with the grid entry they come from; twins follow from them.

    Raises:
        UserError: an attack that does not exist or does not take its parameters.
    """
    victims = []
    for grid in profile.grid:
        training = Recipe(**grid.training.model_dump())
        for seed in profile.seeds:
            for spec in grid.attacks:
                name, params = parse_spec(spec)
                recipe = VictimRecipe(
                    dataset=grid.dataset,
                    arch=grid.arch,
                    width=grid.width,
                    seed=seed,
                    training=training,
                    attack=make_attack(name, params),
                    train_images=grid.train_images,
                    target=grid.target,
                    robust=Robust(**grid.robust.model_dump()),
                )
                victims.append((recipe, grid))
    return victims


def twins_of(victims: Sequence[tuple[VictimRecipe, Grid]]) -> list[tuple[VictimRecipe, Grid]]:
    """The clean twins of some victims, each once, in order."""
    return list({r.twin().hash(): (r.twin(), g) for r, g in victims}.values())


def plan_cells(
    profile: Profile, registry: Registry, root: Path, library: Library, *, twins: bool = True
) -> tuple[list[PlannedCell], list[VictimRecipe]]:
    """All cells on built and admitted victims and their twins; and the victims not yet built.

    What is asked for twice (``ft`` and ``ft`` with its own defaults written out) is one cell.
    Without ``twins``, no cells on clean twins (which the victims' own cells need nevertheless).

    Raises:
        UserError: an unknown defense or hyper-parameter, or missing data.
    """
    zoo, budgets, assets = Zoo(root), Budgets(root, library), AssetStore(root)
    chosen, evasion = _defenses(profile, registry), profile.evasion
    victims = plan_victims(profile)
    cells: dict[str, PlannedCell] = {}
    missing: list[VictimRecipe] = []
    sets: dict[str, DataSet] = {}
    for recipe, grid in [*(twins_of(victims) if twins else ()), *victims]:
        victim, twin = zoo.find(recipe), zoo.find(recipe.twin())
        if victim is None or twin is None or victim.meta["metrics"] is None:
            missing.append(recipe)
            continue
        if not victim.admitted:
            continue
        if recipe.dataset not in sets:
            sets = {recipe.dataset: library.load(recipe.dataset)}  # one at a time in memory
        data, prior = sets[recipe.dataset], prior_of(profile, grid)
        manifest = budgets.manifest(data, recipe.seed, grid.ood)
        for name, entry, params in chosen:
            for token in _tokens(profile, entry):
                budget = (
                    training_budget(victim)
                    if token == TRAINING_SET
                    else budgets.budget(data, manifest, token)
                )
                for seed in profile.defense_seeds:
                    base = plan_base(entry, params, seed, victim, budget, prior, assets)
                    cell = plan_cell(
                        name, entry, params, seed, victim, twin, budget, manifest, base, evasion
                    )
                    cells.setdefault(cell.key, cell)
    return list(cells.values()), missing


def cells_to_come(profile: Profile, registry: Registry) -> list[tuple[str, bool]]:
    """The cells that one more victim adds: of which defense, and whether anything will run."""
    return [
        (name, not isinstance(entry, Broken) and not (token == "0" and why_not(entry.needs, 0, 0)))
        for name, entry, _ in _defenses(profile, registry)
        for token in _tokens(profile, entry)
        for _ in profile.defense_seeds
    ]


def _defenses(
    profile: Profile, registry: Registry
) -> list[tuple[str, Entry | Broken, dict[str, Any]]]:
    """(name on the board, entry, hyper-parameters) of every defense of the profile.

    The name shows what the user wrote between brackets, not the profile's own schedule.
    """
    chosen: list[tuple[str, Entry | Broken, dict[str, Any]]] = []
    for text in dict.fromkeys(profile.defenses):
        if text in registry.broken:  # joins below
            continue
        entry, overrides = registry.parse(text)
        try:
            params = entry.resolve(overrides, profile.params)
        except ValueError as error:
            raise UserError(f"profile {profile.name}: {error}") from error
        chosen.append((entry.label(overrides), entry, params))
    chosen.extend((name, broken, {}) for name, broken in registry.broken.items())
    return chosen


def _tokens(profile: Profile, entry: Entry | Broken) -> list[str]:
    """A defense that needs nothing runs once, at budget 0, and stands in every column.

    One that trains anew from the training set runs once, too, and stands on a board of its own.
    """
    needs = "nothing" if isinstance(entry, Broken) else entry.needs
    if needs == "poisoned-train":
        return [TRAINING_SET]
    if not isinstance(entry, Broken) and entry.base is not None and needs == "optional":
        # A base set takes clean images of known classes, or none.
        return [token for token in profile.budgets if token not in ("unlabeled", "ood")]
    return ["0"] if runs_once(needs) else profile.budgets


def runs_once(needs: str) -> bool:
    """Whether a defense does the same at every budget."""
    return needs == "nothing"


def plan_cell(
    name: str,
    entry: Entry | Broken,
    params: dict[str, Any],
    defense_seed: int,
    victim: Stored,
    twin: Stored,
    budget: Budget,
    manifest: Manifest,
    base: PlannedBase | None,
    evasion: Evasion,
) -> PlannedCell:
    """One cell, with its key."""
    meta, broken = victim.meta, isinstance(entry, Broken)
    cell = _cell(name, entry, params, defense_seed, victim, twin, budget.token)
    inputs = {
        "schema": SCHEMA,
        "metric": METRIC_VERSION,
        "defense": bare(name),
        "code": entry.code_sha256,
        "broken": broken,
        "params": params,
        "victim": victim.hash,
        "trigger": meta.get("trigger_sha256"),
        "twin": twin.hash,
        "split": manifest.split_sha256(),
        "budget": budget.sha256,
        "seed": defense_seed,
        **({} if base is None else {"base": base.inputs}),
        **inputs_of(cell.panel, evasion),
    }
    return PlannedCell(
        cell=cell,
        inputs=inputs,
        key=digest(inputs),
        victim=victim,
        twin=twin,
        budget=budget,
        entry=entry,
        # The defense is not an axis: all defenses share their random numbers.
        seed=seed_of(
            "defense", cell.dataset, cell.arch, cell.victim_seed, budget.token, defense_seed
        ),
        not_applicable=why_not(cell.needs, budget.images, cell.target)
        or _no_set(cell, victim)
        or refusal(base),
        base=base,
        sources=sources_of(entry),
    )


def sources_of(entry: Entry | Broken) -> dict[str, str]:
    """Short hashes of the files behind the code hashes of a key, so that the changed one is found.

    They are in no key themselves. A plugin that cannot be imported has none.
    """
    if isinstance(entry, Broken):
        return {}
    methods = [entry.defense.run, *([] if entry.base is None else [entry.base.builder.run])]
    found = [file_hashes(file_of(method)) for method in methods]
    return {name: sha for files in found for name, sha in sorted(files.items())}


def _cell(
    name: str,
    entry: Entry | Broken,
    params: dict[str, Any],
    defense_seed: int,
    victim: Stored,
    twin: Stored,
    token: str,
) -> Cell:
    meta = victim.meta
    return Cell(
        dataset=meta["dataset"],
        arch=meta["arch"],
        attack=meta["attack"],
        label_rule=meta["label_rule"],
        poison_rate=meta["poison_rate"],
        victim_seed=meta["seed"],
        target=meta["target"],
        twin=twin.hash,
        defense=name,
        params=params,
        budget=token,
        defense_seed=defense_seed,
        needs="nothing" if isinstance(entry, Broken) else entry.needs,
        oracle=not isinstance(entry, Broken) and entry.defense.oracle,
        panel=panel_of(entry),
        origin=entry.origin,
        paper="" if isinstance(entry, Broken) else entry.defense.paper,
    )


def plan_base(
    entry: Entry | Broken,
    params: dict[str, Any],
    defense_seed: int,
    victim: Stored,
    budget: Budget,
    prior: PriorRecipe,
    assets: AssetStore,
) -> PlannedBase | None:
    """The base set of a cell, None where its defense is on none."""
    if isinstance(entry, Broken) or entry.base is None:
        return None
    builder = entry.base.builder
    clean = builder.booster and budget.images > 0
    own = prior if builder.needs == "auxiliary" else None
    built = None if own is None else assets.find(own)
    own_params = split_params(params)[1]
    inputs = {
        "schema": BASE_SET_SCHEMA,
        "builder": builder.name,
        "code": entry.base.code_sha256,
        "params": own_params,
        "victim": victim.hash,
        "prior": None if built is None else built["tensors_sha256"],
        "budget": budget.sha256 if clean else None,
        "seed": defense_seed,
    }
    meta = victim.meta
    return PlannedBase(
        entry=entry.base,
        params=own_params,
        inputs=inputs,
        key=digest(inputs),
        prior=own,
        clean=clean,
        seed=seed_of("base-set", meta["dataset"], meta["arch"], meta["seed"], defense_seed),
    )


def _no_set(cell: Cell, victim: Stored) -> str:
    """Why a defense cannot train anew; empty where it can, or does not want to."""
    return no_training_set(victim) if cell.needs == "poisoned-train" else ""


def why_not(needs: str, images: int, target: int | None) -> str:
    """Why a defense does not apply at a budget of so many images; empty where it does."""
    if needs not in _GRANTED:
        return f"needs {needs}, which this protocol does not grant"
    if needs == "target" and target is None:
        return "needs the target class; there is none"
    if needs not in ("nothing", "optional") and images == 0:
        return f"needs {needs}; this budget has none"
    return ""


def existing(root: Path, planned: PlannedCell) -> Record | None:
    """The record of a planned cell, None where there is no readable one."""
    probe = Record(
        key=planned.key,
        status="ok",
        cell=planned.cell,
        inputs={},
        before=None,
        after=None,
        twin=None,
        score=None,
        der=None,
        cost=None,
    )
    path = path_of(root, probe)
    if not path.exists():
        return None
    try:
        return read(path)
    except RecordError:
        return None


def states(root: Path, cells: Sequence[PlannedCell], known: Sequence[Record]) -> Iterator[State]:
    """Fresh, failed, stale (recorded, but from other inputs) or missing, for every cell."""
    by_key = {record.key: record for record in known}
    seen = {_identity(record.cell) for record in known}
    for planned in cells:
        record = by_key.get(planned.key)
        if record is not None:
            yield "failed" if record.status in FAILED else "fresh"
        else:
            yield "stale" if _identity(planned.cell) in seen else "missing"


def _identity(cell: Cell) -> tuple[str | int | float, ...]:
    """What a person would call the same cell: everything but its inputs' hashes."""
    victim = (cell.setting, cell.victim_seed)
    return (*victim, cell.defense, cell.budget, cell.defense_seed)
