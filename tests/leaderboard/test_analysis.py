"""What could break: ranks that claim too much, a dominated method that is not, a lost setting."""

import dataclasses
import itertools

import numpy as np
import pytest

from bench.records import Attacked, Cost, Metrics, Record
from leaderboard.aggregate import Board, boards
from leaderboard.analysis import Analysis, RowAnalysis, analyse
from leaderboard.comparison import CONTRASTS, Comparison, difference
from leaderboard.degradation import Ladder, ladders
from leaderboard.markdown import _rung as rung_text
from leaderboard.outcomes import latest, outcomes
from leaderboard.standing import standings
from leaderboard.victims import merge
from tests.leaderboard.synthetic import DEFENSES, grid, metrics, record

ATTACKS = [f"a{i}" for i in range(8)]
SETTINGS = [("cifar10", "small_vgg", attack, "all-to-one", 0.1) for attack in ATTACKS]


def boards_of(records: list[Record]) -> tuple[Board, ...]:
    kept, _ = latest(records)
    return boards(outcomes(kept, merge([], kept)))


def analysed(records: list[Record]) -> Analysis:
    (board,) = boards_of(records)
    return analyse(board)


def one_each(
    defense: str, acc: float = 0.9, asr: float = 0.05, ra: float = 0.7, images: int = 1000, **more
) -> list[Record]:
    """One record per attack, figures a little apart."""
    found = []
    for i, attack in enumerate(ATTACKS):
        after = metrics(acc + 1e-4 * i, asr, ra + 1e-3 * i)
        cost = Cost(seconds=1.0, images_forward=images, images_backward=0, peak_rss=1)
        one = record(defense, attack=attack, after=after, **more)
        found.append(dataclasses.replace(one, cost=cost))
    return found


# -- rank ranges


def places(found: Analysis) -> dict[str, tuple[int, int]]:
    standing = {name: row.standing for name, row in found.rows.items()}
    return {name: (s.best, s.worst) for name, s in standing.items() if s}


def test_clear_differences_give_one_place_each() -> None:
    found = analysed([*one_each("c", ra=0.2), *one_each("a", ra=0.8), *one_each("b", ra=0.5)])
    assert places(found) == {"a": (1, 1), "b": (2, 2), "c": (3, 3)}


def test_what_is_not_separated_shares_its_places() -> None:
    noise = [
        record("noisy", attack=attack, after=metrics(0.9, 0.05, 0.5 + 0.3 * (-1) ** i))
        for i, attack in enumerate(ATTACKS)
    ]
    found = analysed([*one_each("a", ra=0.5), *noise, *one_each("bad", ra=0.1)])
    assert places(found) == {"a": (1, 2), "noisy": (1, 2), "bad": (3, 3)}
    leaders = [name for name, row in found.rows.items() if row.standing and row.standing.leads]
    assert sorted(leaders) == ["a", "noisy"]


def test_an_oracle_has_no_place_and_takes_none() -> None:
    found = analysed(
        [*one_each("a", ra=0.5), *one_each("b", ra=0.2), *one_each("o", ra=0.9, oracle=True)]
    )
    assert places(found) == {"a": (1, 1), "b": (2, 2)}
    assert found.rows["o"].pareto is None
    assert ("o", "a") in found.matrix  # but it is compared


def test_too_few_settings_give_no_rank() -> None:
    records = [r for r in [*one_each("a"), *one_each("b", ra=0.2)] if r.cell.attack < "a5"]
    found = analysed(records)
    assert places(found) == {}
    assert found.rows["a"].pareto is not None
    assert found.rows["a"].pareto.place == "not tested"


def test_a_joining_method_moves_others_by_its_own_place_only() -> None:
    names = [*DEFENSES]
    before, after = (places(analysed(at_2500(chosen))) for chosen in (names[:-1], names))
    assert set(after) - set(before) == {names[-1]}
    for name, (best, worst) in before.items():
        assert (after[name][0] - best, after[name][1] - worst) in {(0, 0), (0, 1), (1, 1)}


def at_2500(names: list[str]) -> list[Record]:
    return [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, budget="2500", needs="images"))
        for r in grid(names, ["2500"], SETTINGS)
    ]


def test_a_rank_range_holds_the_true_rank() -> None:
    # Methods whose chance of repair rises in even steps, on settings of unequal difficulty.
    rng = np.random.default_rng(0)
    methods, settings, held = 6, 10, []
    for _ in range(40):
        hard = rng.normal(0, 1.5, settings)
        chance = 1 / (1 + np.exp(-(np.linspace(-1.5, 1.5, methods)[:, None] + hard)))
        repaired = rng.random((methods, settings, 5)) < chance[..., None]
        score = np.where(repaired, rng.beta(20, 2, repaired.shape), rng.beta(1, 15, repaired.shape))
        means = [list(100 * row) for row in score.mean(axis=2)]
        worse, better = [0] * methods, [0] * methods
        for low, high in itertools.combinations(range(methods), 2):
            verdict = difference(means[high], means[low], CONTRASTS["score"]).verdict
            worse[low] += verdict == "better"
            better[high] += verdict == "better"
            worse[high] += verdict == "worse"
            better[low] += verdict == "worse"
        held += [1 + worse[i] <= methods - i <= methods - better[i] for i in range(methods)]
    assert np.mean(held) >= 0.95


def test_standings_need_no_more_than_the_matrix() -> None:
    board = analysed([*one_each("a"), *one_each("b", ra=0.2)]).board
    gap = difference([5.0] * 6, [0.0] * 6, CONTRASTS["score"])
    matrix = {("a", "b"): Comparison(one="a", other="b", difference=gap, holm=None)}
    assert standings(board, matrix)["a"].worst == 1


# -- Pareto


def pareto_of(found: Analysis) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {n: (r.pareto.place, r.pareto.dominated_by) for n, r in found.rows.items() if r.pareto}


def test_dominated_only_by_what_is_better_and_nowhere_worse() -> None:
    found = pareto_of(
        analysed(
            [
                *one_each("good", acc=0.90, asr=0.02, images=1000),
                *one_each("cheap", acc=0.88, asr=0.30, images=10),
                *one_each("bad", acc=0.85, asr=0.40, images=5000),
                *one_each("close", acc=0.895, asr=0.02, images=1000),
            ]
        )
    )
    assert found["good"] == ("not dominated", ())
    assert found["cheap"] == ("not dominated", ())
    assert found["bad"][0] == "dominated"
    assert set(found["bad"][1]) == {"good", "cheap", "close"}
    # Half a point of accuracy below, all else equal: shown to be worse, and dominated.
    assert found["close"] == ("dominated", ("good",))


def test_noise_dominates_nobody() -> None:
    noisy = [
        record("noisy", attack=attack, after=metrics(0.9, 0.05 + 0.3 * (i % 2), 0.7))
        for i, attack in enumerate(ATTACKS)
    ]
    steady = [record("steady", attack=a, after=metrics(0.9, 0.19, 0.7)) for a in ATTACKS]
    found = pareto_of(analysed([*noisy, *steady]))
    assert found == {"noisy": ("not separated", ()), "steady": ("not separated", ())}


# -- profiles


def test_profile_share_and_worst_setting() -> None:
    asr = [0.0, 0.05, 0.05, 0.099, 0.1, 0.5, 0.95, 1.0]
    records = [
        record("ibau", attack=a, seed=seed, after=metrics(0.9, x, 0.9 * (1 - x)))
        for a, x in zip(ATTACKS, asr, strict=True)
        for seed in (0, 1)
    ]
    row: RowAnalysis = analysed(records).rows["ibau"]
    assert row.profile == (
        (0.0, 1 / 8),
        (0.05, 3 / 8),
        (0.099, 4 / 8),
        (0.1, 5 / 8),
        (0.5, 6 / 8),
        (0.95, 7 / 8),
        (1.0, 1.0),
    )
    assert row.removed is not None
    assert (row.removed.mean, row.removed.n) == (0.5, 8)
    assert row.removed == row.removed_amplified
    assert row.worst is not None
    assert row.worst.setting.attack == "a7"


def test_removed_at_every_strength_is_asked_for_too() -> None:
    def at(asr: float) -> Attacked:
        return Attacked(asr=asr, ra=0.5, asr_conditional=asr, asr_including_target=asr)

    after = Metrics(acc=0.9, images=1000, strengths={"x1": at(0.05), "x3": at(0.8)})
    twin = metrics(0.9, 0.0, 0.9, ["x1", "x3"])
    row = analysed([record(attack=a, after=after, twin=twin) for a in ATTACKS]).rows["ibau"]
    assert row.removed is not None
    assert row.removed_amplified is not None
    assert (row.removed.mean, row.removed_amplified.mean) == (1.0, 0.0)


# -- from 2,500 images to none


def test_ladder_goes_down_and_says_what_was_lost() -> None:
    recovered = {"2500": 0.8, "100": 0.5, "1": 0.4}
    records = [
        record("ibau", budget, attack=a, after=metrics(0.9, 0.05, ra + 0.01 * i))
        for budget, ra in recovered.items()
        for i, a in enumerate(ATTACKS)
    ]
    records += [
        record("ibau", "0", attack=a, status="not-applicable", error={"message": "no"})
        for a in ATTACKS
    ]
    records += [record("clp", "0", attack=a, needs="nothing") for a in ATTACKS]
    records += [record("bcu", "ood", attack=a) for a in ATTACKS]
    found: dict[str, Ladder] = {ladder.defense: ladder for ladder in ladders(boards_of(records))}
    assert list(found) == ["clp", "ibau"]
    rungs = found["ibau"].rungs
    assert [rung.budget for rung in rungs] == ["2500", "100", "1", "0"]
    assert rungs[0].change is None
    assert rungs[1].change is not None
    assert rungs[1].change.verdict == "worse"
    assert rungs[1].change.mean == pytest.approx(-100 * 0.3 / 0.9 * 0.9 / 0.91)
    assert (rungs[3].score, rungs[3].refusal) == (None, "no")
    flat = found["clp"].rungs
    assert all(rung.score == flat[0].score and rung.change is None for rung in flat)


def test_a_rung_says_where_its_change_is_over_other_settings() -> None:
    records = [record("ibau", "2500", attack=a, after=metrics(0.9, 0.05, 0.8)) for a in ATTACKS]
    records.append(record("ibau", "100", attack=ATTACKS[0], after=metrics(0.9, 0.05, 0.4)))
    (ladder,) = ladders(boards_of(records))
    first, second = ladder.rungs
    assert (first.paired, second.paired) == (True, False)
    assert second.change is not None
    assert second.change.n == 1
    assert " in 1)" in rung_text(second)
