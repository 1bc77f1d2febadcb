"""What the command line picks from a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import Grid, Profile, check_budget
from bench.specs import format_spec, parse_spec
from zoo.data import Library
from zoo.errors import UserError
from zoo.models import ARCHITECTURES


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the command line picks; None leaves the profile's choice."""

    attacks: tuple[str, ...] | None = None
    defenses: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    archs: tuple[str, ...] | None = None
    budgets: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None


def select(profile: Profile, selection: Selection, library: Library) -> Profile:
    """The profile narrowed (or widened) to what the command line says.

    A data set or architecture that the profile does not name is treated as the first that it does
    name (an architecture: with that data set). An attack goes where the profile has it (with that
    training, that target), and where no entry of a data set and architecture has it, to the first
    of them.

    Raises:
        UserError: an unknown name.
    """
    grid = [g.model_copy(update={"dataset": library.adopt(g.dataset)}) for g in profile.grid]
    if selection.datasets is not None:
        grid = [g for name in selection.datasets for g in _for_dataset(grid, library.adopt(name))]
    if selection.archs is not None:
        for arch in selection.archs:
            check_arch(arch)
        grid = [g for arch in selection.archs for g in _for_arch(grid, arch)]
    if selection.attacks is not None:
        grid = _with_attacks(grid, selection.attacks)
    for g in grid:
        check_arch(g.arch)
    update: dict[str, Any] = {"grid": grid}
    if selection.defenses is not None:
        update["defenses"] = list(selection.defenses)
    if selection.budgets is not None:
        try:
            update["budgets"] = [check_budget(b) for b in selection.budgets]
        except ValueError as error:
            raise UserError(str(error)) from error
    if selection.seeds is not None:
        update["seeds"] = list(selection.seeds)
    return profile.model_copy(update=update)


def check_arch(name: str) -> None:
    """Raises a UserError for an unknown architecture."""
    if name not in ARCHITECTURES:
        raise UserError(f"unknown architecture {name!r}. Known: {', '.join(ARCHITECTURES)}")


def _for_dataset(grid: Sequence[Grid], dataset: str) -> list[Grid]:
    found = [g for g in grid if g.dataset == dataset]
    like = [g for g in grid if (g.dataset, g.arch) == (grid[0].dataset, grid[0].arch)]
    return found or [g.model_copy(update={"dataset": dataset, "ood": None}) for g in like]


def _for_arch(grid: Sequence[Grid], arch: str) -> list[Grid]:
    found = [g for g in grid if g.arch == arch]
    if found:
        return found
    first = {g.dataset: g.arch for g in reversed(grid)}
    return [g.model_copy(update={"arch": arch}) for g in grid if g.arch == first[g.dataset]]


def _with_attacks(grid: Sequence[Grid], attacks: Sequence[str]) -> list[Grid]:
    """Every attack once per data set, architecture and width, unless the profile has it twice."""
    listed = [{_plain(attack) for attack in g.attacks} for g in grid]
    places = [(g.dataset, g.arch, g.width) for g in grid]
    found = []
    for number, (place, own) in enumerate(zip(places, listed, strict=True)):
        anywhere = set().union(*(a for p, a in zip(places, listed, strict=True) if p == place))
        kept = [
            attack
            for attack in dict.fromkeys(attacks)
            if (name := _plain(attack)) in own
            or (name not in anywhere and places.index(place) == number)
        ]
        if kept:
            found.append(grid[number].model_copy(update={"attacks": kept}))
    return found


def _plain(attack: str) -> str:
    """However it is written."""
    return format_spec(*parse_spec(attack))
