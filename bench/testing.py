"""For the tests of those who write plugins: the rules of `bench check` as a pytest test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.checking import of_source, rules_for
from bench.conformance import Rule, outcome
from bench.registry import Registry


def conformance_tests(source: str | Path) -> Callable[[Any, Rule[Any]], None]:
    """A test that fails for each rule of `bench check` that does not hold.

    Assign it to a name that begins with ``test_``. Hyper-parameters are the defaults.

    Args:
        source: the plugin's file.
    """
    import pytest

    registry = Registry()
    registry.add(str(source))
    broken = [f"{b.name}: {b.error_type}: {b.message}" for b in registry.broken.values()]
    assert not broken, broken
    cases = []
    for subject in of_source(registry, str(source)):
        trial, rules = rules_for(subject, None)
        cases += [pytest.param(trial, rule, id=f"{subject.name}-{rule.name}") for rule in rules]

    def test_conformance(trial: Any, rule: Rule[Any]) -> None:  # noqa: ANN401 (of any kind)
        verdict, seen = outcome(rule, trial)
        assert verdict != "fail", f"{seen}\n{rule.why}\n{rule.remedy}"

    made: Callable[[Any, Rule[Any]], None] = pytest.mark.parametrize(("trial", "rule"), cases)(
        test_conformance
    )
    return made
