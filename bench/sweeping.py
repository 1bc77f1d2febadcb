"""`bench sweep`: one defense over a range of one hyper-parameter, and the picture of the trade-off.

A value is a cell like any other, with the key that ``bench run --defense 'NAME[param=value]'``
gives it. Cells that only a sweep has asked for are marked and stand on no board; a run that asks
for one by name takes the mark away.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from bench.building import zoo_state
from bench.ending import summary
from bench.forecast import show_plan
from bench.plan import PlannedCell, existing, plan_cells
from bench.registry import Broken, Entry, Registry
from bench.specs import bare, parse_spec
from bench.sweeps import Scalar, Sweep, in_order, remember
from bench.verbs import Request, build_missing, nothing_to_run, prepare, run_cells
from zoo.errors import UserError


def sweep(
    request: Request, defense: str, param: str, values: str, dry_run: bool, json_output: bool
) -> int:
    """`bench sweep`.

    Raises:
        UserError: see :func:`texts_of`, and whatever `bench run` refuses.
    """
    settings, registry = prepare(dataclasses.replace(request, defense=[defense]))
    profile = settings.profile.model_copy(
        update={"defenses": texts_of(defense, param, values, registry)}
    )
    settings = dataclasses.replace(settings, profile=profile)
    state = zoo_state(settings)
    if dry_run:
        return show_plan(settings, registry, state, json_output, twins=False)
    failures = build_missing(settings, state)
    # A picture of the trade-off has no place for clean twins: they have no ASR.
    planned, _ = plan_cells(profile, registry, settings.root, settings.library, twins=False)
    cells = [mark(settings.root, p) for p in planned if not isinstance(p.entry, Broken)]
    if not cells:
        return nothing_to_run(failures)
    remember(settings.root, sweep_of(defense, param, cells))
    records, ran = run_cells(settings, cells)
    draw(settings.root, json_output)
    return summary(request, records, ran, failures)


def texts_of(text: str, param: str, values: str, registry: Registry) -> list[str]:
    """The defense with each value, as `bench run` would be told it; numbers in ascending order.

    Raises:
        UserError: an unknown defense or hyper-parameter, one that the text sets already, values of
            another type, or fewer than two of them.
    """
    entry, overrides = registry.parse(text)
    _check_param(entry, param)
    if param in overrides:
        raise UserError(
            f"{entry.label(overrides)} sets {param} already. Leave it out of the brackets, or "
            "sweep another one"
        )
    texts: dict[Scalar, str] = {}  # two ways to write a value are one
    for part in values.split(","):
        value, raw = _value(entry, param, part.strip())
        texts.setdefault(value, entry.label({**overrides, param: raw}))
    if len(texts) < 2:
        raise UserError(f"expected at least two different values of {param}, got {values!r}")
    return [texts[value] for value in in_order(texts)]


def sweep_of(text: str, param: str, cells: Sequence[PlannedCell]) -> Sweep:
    """What is to be remembered: what all the cells have in common, and where they differ."""
    fixed = {name: value for name, value in cells[0].cell.params.items() if name != param}
    return Sweep(
        defense=bare(text.strip()),
        label=text.strip(),
        param=param,
        values=in_order(planned.cell.params[param] for planned in cells),
        fixed=fixed,
    )


def _check_param(entry: Entry, param: str) -> None:
    known = list(entry.resolve({}))
    if not known:
        raise UserError(f"{entry.name} has no hyper-parameter: there is nothing to sweep")
    if param not in known:
        close = get_close_matches(param, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"{entry.name} has no hyper-parameter {param!r}.{hint} It has: {', '.join(known)}"
        )


def _value(entry: Entry, param: str, text: str) -> tuple[Scalar, Scalar]:
    """A value in the type of the parameter's default, and as it was written."""
    if not text:
        raise UserError("expected --values like 1e-4,3e-4,1e-3, got an empty one")
    raw: Scalar = parse_spec(f"{entry.name}[{param}={text}]")[1][param]
    try:
        value: Scalar = entry.resolve({param: raw})[param]
    except ValueError as error:
        raise UserError(str(error)) from error
    return value, raw


def mark(root: Path, planned: PlannedCell) -> PlannedCell:
    """The cell as a sweep's own, unless a run has asked for it by name before."""
    record = existing(root, planned)
    if record is not None and not record.cell.swept:
        return dataclasses.replace(planned, cell=record.cell)
    return dataclasses.replace(planned, cell=dataclasses.replace(planned.cell, swept=True))


def draw(root: Path, json_output: bool) -> None:
    """Draws all sweeps of a root and says where."""
    from leaderboard.tradeoff import render

    drawn = render(root)
    for problem in drawn.problems:
        print(f"bench: {problem}", file=sys.stderr)
    if json_output:
        print(json.dumps([p.to_dict() for p in drawn.pictures], indent=1))
        return
    for picture in drawn.pictures:
        for path in (picture.svg, picture.png, picture.csv):
            print(path)
