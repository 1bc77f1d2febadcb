"""Which generative priors a profile needs, and which recipe each has.

A defense on a base set is written ``DEFENSE@BUILDER``; some builders search the images that a
generator can make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bench.config import Grid, Profile
from bench.specs import parse_spec, split_base
from defenses import BASE_SETS
from zoo.asset_recipes import PriorRecipe
from zoo.prior import PriorSpec
from zoo.prior_training import PriorSchedule
from zoo.recipes import VictimRecipe
from zoo.sets import facts_of

# Of the base-set builders, those that search a prior.
BUILDERS: Final = tuple(base.name for base in BASE_SETS if base.needs == "auxiliary")


def wants_prior(profile: Profile) -> bool:
    """Whether any defense of a profile needs a prior, as ``ibau@fred`` does."""
    return any(
        parse_spec(builder)[0] in BUILDERS
        for builder in (split_base(text)[1] for text in profile.defenses)
        if builder
    )


def prior_of(profile: Profile, grid: Grid) -> PriorRecipe:
    """The prior for the victims of a grid entry."""
    how = profile.prior
    return PriorRecipe(
        dataset=grid.dataset,
        ood=grid.ood or facts_of(grid.dataset).ood,
        spec=PriorSpec(width=how.width),
        training=PriorSchedule(steps=how.steps, batch_size=how.batch_size, lr=how.lr),
    )


def plan_priors(
    profile: Profile, victims: Sequence[tuple[VictimRecipe, Grid]]
) -> list[tuple[PriorRecipe, VictimRecipe]]:
    """The priors that a profile needs, each once, with the clean twin that it is measured with.

    That is the twin of the first victim on the data set: of seed 0 in every built-in profile.
    """
    if not wants_prior(profile):
        return []
    found: dict[str, tuple[PriorRecipe, VictimRecipe]] = {}
    for victim, grid in victims:
        prior = prior_of(profile, grid)
        found.setdefault(prior.hash(), (prior, victim.twin()))
    return list(found.values())


def describe_prior(figures: dict[str, Any]) -> str:
    """The figures of a prior in a few words; see ``zoo.prior_asset``."""
    text = (
        f"gap {figures['gap']:.2f}  spread {figures['spread']:.2f}"
        f"  nearest {figures['nearest']:.2f}"
    )
    if figures["coverage"] is not None:
        shares = [figures[name]["classes"] for name in ("coverage", "coverage_of_real")]
        text += f"  classes {100 * shares[0]:.0f} % (of real images {100 * shares[1]:.0f} %)"
    return text + ("  collapsed" if figures["collapsed"] else "")
