"""For the tests of those who write plugins: the rules of `bench check` as a pytest test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.checking import of_source, suite
from bench.conformance import Finding
from bench.registry import Registry


def conformance_tests(source: str | Path) -> Callable[[Finding], None]:
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
    found = [f for subject in of_source(registry, str(source)) for f in suite(subject, None)]

    @pytest.mark.parametrize("finding", found, ids=lambda f: f"{f.subject}-{f.rule}")
    def test_conformance(finding: Finding) -> None:
        assert finding.verdict != "fail", f"{finding.seen}\n{finding.why}\n{finding.remedy}"

    return test_conformance
