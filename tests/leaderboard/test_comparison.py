"""What could break: a test that is not the sign-flip test, a verdict that others can change."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bench.records import Record
from leaderboard.aggregate import Board, boards
from leaderboard.comparison import (
    CONTRASTS,
    LEAST_SETTINGS,
    SUBSETS,
    compared,
    difference,
    holm,
    subsets,
)
from leaderboard.outcomes import latest, outcomes
from leaderboard.victims import merge
from tests.leaderboard.synthetic import DEFENSES, grid, metrics, record

SCORE = CONTRASTS["score"]
ATTACKS = [f"a{i}" for i in range(8)]


def board_of(records: list[Record], budget: str = "2500") -> Board:
    kept, _ = latest(records)
    found = {b.budget: b for b in boards(outcomes(kept, merge([], kept)))}
    return found[budget]


def spread(defense: str, recovered: float, step: float = 0.01, attacks: list[str] = ATTACKS):
    """One record per attack; the score rises a little from attack to attack."""
    return [
        record(defense, attack=attack, after=metrics(0.9, 0.05, recovered + step * i))
        for i, attack in enumerate(attacks)
    ]


def test_p_is_that_of_the_sign_flip_test() -> None:
    rng = np.random.default_rng(0)
    for n in (6, 9, 12):
        one, other = rng.uniform(0, 100, (2, n))
        expected = stats.permutation_test(
            (one, other),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        )
        found = difference(list(one), list(other), SCORE)
        assert found.p == pytest.approx(expected.pvalue)
        assert found.mean == pytest.approx(np.mean(one - other))


def test_interval_holds_exactly_the_shifts_that_are_not_rejected() -> None:
    rng = np.random.default_rng(1)
    other = list(rng.uniform(0, 50, 7))
    one = [value + float(rng.normal(10, 8)) for value in other]
    found = difference(one, other, SCORE)
    assert found.low is not None
    assert found.high is not None
    for shift in np.linspace(found.low - 3, found.high + 3, 101):
        gaps = [a - b - shift for a, b in zip(one, other, strict=True)]
        flips = [
            sum(s * g for s, g in zip(signs, gaps, strict=True))
            for signs in itertools.product((1, -1), repeat=len(gaps))
        ]
        tails = [np.mean([f >= sum(gaps) for f in flips]), np.mean([f <= sum(gaps) for f in flips])]
        assert (2 * min(tails) > 0.05) == (found.low <= shift <= found.high)


def test_many_settings_are_tested_on_random_subsets() -> None:
    rng = np.random.default_rng(2)
    gaps = rng.normal(1.0, 4.0, 62)
    found = difference(list(gaps), [0.0] * 62, SCORE)
    # Normal differences of this number: Student's t is right, up to Monte Carlo error.
    centre, error = gaps.mean(), stats.sem(gaps)
    assert found.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.02)
    assert (found.low, found.high) == pytest.approx(
        (centre - 2 * error, centre + 2 * error), abs=0.3 * error
    )
    for n in (7, 13, 62):
        chosen = subsets(n)
        assert len(chosen.members) + chosen.empty == min(2**n, SUBSETS)
        assert chosen.empty >= 1
        assert (chosen.members.sum(axis=1) == chosen.sizes).all()
    clear = difference([5.0 + i for i in range(62)], [0.0] * 62, SCORE)
    assert clear.p == 2 / SUBSETS  # the least that so many subsets can show


def test_a_nominal_interval_covers_and_a_true_null_is_seldom_rejected() -> None:
    rng = np.random.default_rng(3)
    world = rng.beta(0.4, 0.4, (400, 2, 12, 1))  # chance of repair: the same for both at random
    repaired = rng.random((400, 2, 12, 5)) < world
    scores = 100 * np.where(
        repaired, rng.beta(20, 2, repaired.shape), rng.beta(1, 15, repaired.shape)
    )
    found = [difference(list(a), list(b), SCORE) for a, b in scores.mean(axis=3)]
    rejected = np.mean([f.p is not None and f.p <= 0.05 for f in found])
    assert 0.03 <= rejected <= 0.07
    assert rejected == np.mean([f.verdict in ("better", "worse") for f in found])


def test_fewer_than_six_settings_are_not_tested() -> None:
    found = difference([50.0] * 5, [0.0] * 5, SCORE)
    assert (found.p, found.low, found.high, found.verdict) == (None, None, None, "not tested")
    assert (found.mean, found.wins) == (50.0, 5)
    assert difference([50.0] * LEAST_SETTINGS, [0.0] * LEAST_SETTINGS, SCORE).verdict == "better"


def test_wins_ties_and_losses_by_the_margin_and_the_direction() -> None:
    one = [10.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    other = [0.0, 8.0, 8.1, 12.0, 12.1, 13.0]
    found = difference(one, other, SCORE)
    assert (found.wins, found.ties, found.losses) == (1, 3, 2)
    assert found.median == pytest.approx((-2 + 1.9) / 2)
    back = found.reversed()
    assert (back.wins, back.ties, back.losses) == (2, 3, 1)
    assert back == difference(other, one, SCORE)
    lower = difference([0.1] * 6, [0.5] * 6, CONTRASTS["asr"])
    assert (lower.verdict, lower.wins) == ("better", 6)
    assert lower.reversed().verdict == "worse"


def test_equal_figures_are_not_separated() -> None:
    found = difference([40.0] * 8, [40.0] * 8, SCORE)
    assert (found.p, found.low, found.high, found.verdict) == (1.0, 0.0, 0.0, "not separated")


def test_holm_is_the_example_by_hand() -> None:
    # Holm (1979): multiply the smallest by 4, the next by 3, ..., and never fall.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_only_shared_settings_are_compared_and_failures_count_as_undefended() -> None:
    failed = [record("b", attack=a, status="timeout") for a in ATTACKS[:1]]
    found = compared(board_of([*spread("a", 0.7), *spread("b", 0.7, attacks=ATTACKS[1:]), *failed]))
    pair = found["a", "b"].difference
    assert pair.n == 8
    assert pair.wins == 1  # where b timed out
    (half,) = {
        c.difference.n
        for c in compared(
            board_of([*spread("a", 0.7), *spread("b", 0.7, attacks=ATTACKS[:4])])
        ).values()
    }
    assert half == 4


def test_what_was_never_evaluated_is_not_compared() -> None:
    refused = [record("b", attack=a, status="not-applicable") for a in ATTACKS]
    assert compared(board_of([*spread("a", 0.7), *refused])) == {}


def test_holm_is_over_the_comparisons_of_one_defense() -> None:
    found = compared(board_of([*spread("a", 0.8), *spread("b", 0.6, -0.01), *spread("c", 0.1)]))
    assert found["a", "b"].difference.p == 2 / 2**8
    assert found["a", "b"].holm == pytest.approx(2 * 2 / 2**8)
    assert {pair for pair in found if pair[0] == "a"} == {("a", "b"), ("a", "c")}


def test_cost_is_compared_by_factors() -> None:
    found = compared(board_of([*spread("a", 0.8), *spread("b", 0.6)]), "cost")
    assert found["a", "b"].difference.mean == 0.0
    assert found["a", "b"].difference.ties == 8


def test_adding_a_method_changes_no_verdict_between_two_others() -> None:
    settings = [("cifar10", "small_vgg", attack, "all-to-one", 0.1) for attack in ATTACKS]
    names = [*DEFENSES]
    before = compared(board_of(grid(names[:-1], ["2500"], settings)))
    after = compared(board_of(grid(names, ["2500"], settings)))
    assert len(before) < len(after)
    for pair, old in before.items():
        assert after[pair].difference == old.difference
        assert (after[pair].holm or 0) >= (old.holm or 0)  # this one says that it depends
