"""What could break: an unknown time counted as none, or a range that real times fall out of."""

import dataclasses
import random

import pytest

from bench.durations import Durations, Span, Work, seconds_of
from bench.records import Cost
from tests.leaderboard.synthetic import record


def timed(seconds, defense="ft", arch="small_vgg", status="ok", **more):
    made = record(defense=defense, status=status, arch=arch, dataset="signs")
    ended = f"2026-01-01T00:{int(seconds // 60):02}:{seconds % 60:06.3f}+00:00"
    return dataclasses.replace(made, started="2026-01-01T00:00:00.000+00:00", ended=ended, **more)


def work(name="ft", arch="small_vgg"):
    return Work(name=name, arch=arch, dataset="signs")


def test_a_cell_takes_what_it_took_with_its_evaluation():
    cost = Cost(seconds=2.0, images_forward=0, images_backward=0, peak_rss=0)
    assert seconds_of(timed(5.5, cost=cost)) == 5.5
    untold = dataclasses.replace(timed(5.5, cost=cost), started="")
    assert seconds_of(untold) == 2.0  # the repair alone, where nothing else is known
    assert seconds_of(dataclasses.replace(untold, cost=None)) is None
    assert seconds_of(timed(5.5, status="not-applicable")) is None


def test_real_times_fall_into_the_range():
    rng = random.Random(0)
    past = [timed(min(3000, rng.lognormvariate(3, 0.5))) for _ in range(40)]
    span = Durations(past, "cpu").span(work())
    assert span.low < span.median < span.high
    assert span.median == pytest.approx(20, rel=0.3)
    new = [rng.lognormvariate(3, 0.5) for _ in range(1000)]
    inside = sum(span.low <= seconds <= span.high for seconds in new) / len(new)
    assert 0.7 < inside < 0.9  # a tenth below, a tenth above


def test_another_setting_tells_less_and_nothing_tells_nothing():
    durations = Durations([timed(10), timed(11), timed(12)], "cpu")
    here, there = durations.span(work()), durations.span(work(arch="vgg16"))
    assert there.median == pytest.approx(here.median)
    assert there.low < here.low / 3
    assert there.high > 3 * here.high
    assert durations.span(work("ft[lr=0.1]")) == there  # the same method, otherwise set
    assert durations.span(work("ibau")) is None


def test_unknown_cells_are_counted_and_never_nothing():
    durations = Durations([timed(10)], "cpu")
    found = durations.forecast([work(), work(), work("ibau"), work("nad"), work("nad")], slots=2)
    assert found.known == Span(
        low=pytest.approx(5), median=pytest.approx(10), high=pytest.approx(20)
    )
    assert found.unknown == {"ibau": 1, "nad": 2}
    assert str(found) == "5.0 s to 20 s, probably 10 s + ? for 1 cell of ibau, 2 cells of nad"
    assert str(durations.forecast([work("nad")], slots=1)) == "? for 1 cell of nad"
    assert str(durations.forecast([], slots=1)) == "no time"


def test_another_kind_of_device_tells_nothing():
    past = [timed(10, env={"device": "cuda"})]
    assert Durations(past, "cpu").span(work()) is None
    assert Durations(past, "cuda").span(work()) is not None
