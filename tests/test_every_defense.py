"""What every registered method owes the harness: the rules of `bench check`, and our own on top."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import defenses
from bench.conformance import outcome
from bench.defense_rules import RULES, runs
from bench.trials import CLASSES, Trial
from defenses import Defense

# Enough to take part; hyper-parameters that a method lacks are left out.
SHORT: dict[str, float] = {
    "steps": 3,
    "rounds": 1,
    "iterations": 3,
    "ascent_steps": 2,
    "round_steps": 2,
    "endpoint_steps": 2,
    "pgd_steps": 1,
    "teacher_steps": 2,
    "student_steps": 1,
    "mask_lr": 20.0,  # so that a mask moves in these few steps
    "batch_size": 16,
    "search_batch": 2,
    "search_steps": 3,
    "inverted": CLASSES,
    "inversion_steps": 2,
    "screen_steps": 1,
    "screen_probes": 1,
    "screen_kept": 2,
    "submodel_steps": 2,
    "submodel_batch": 4,
    "index_threshold": 0.0,  # detectors find something, and repair it
    "success": 0.0,
    "reach_threshold": 0.0,
}
OWN: dict[str, dict[str, float]] = {
    "clp": {"u": 1.0},  # no channel of such a network stands out by 3
    "nad": {"lr": 0.01},  # at its own 0.1 a network that was never trained diverges
}

DATA_FREE = [d for d in defenses.ALL if d.needs == "nothing"]
LABELLED = ("labels", "optional", "poisoned-train")


def name_of(entry):
    return entry.name


@pytest.fixture(scope="module")
def trials():
    """Every method's trial: its rules look at the same runs."""
    made = {}

    def trial_of(method):
        if method.name not in made:
            short = {k: v for k, v in SHORT.items() if k in method.hyper_parameters()}
            made[method.name] = Trial(method, short | OWN.get(method.name, {}))
        return made[method.name]

    return trial_of


@pytest.mark.parametrize("rule", RULES, ids=name_of)
@pytest.mark.parametrize("method", [*defenses.ALL, *defenses.BASE_SETS], ids=name_of)
def test_the_rules_of_bench_check(trials, method, rule):
    verdict, seen = outcome(rule, trials(method))
    assert verdict == "pass", seen


def test_names_are_unique_and_the_order_is_stable() -> None:
    names = [d.name for d in defenses.ALL]
    assert len(set(names)) == len(names)
    assert names[:2] == ["identity", "scramble"], "the controls come first"


@pytest.mark.parametrize("entry", DATA_FREE, ids=name_of)
def test_data_free_methods_ignore_images(trials, entry: Defense) -> None:
    trial = trials(entry)
    without, given = runs(trial), runs(trial, images=20)
    assert all(
        torch.equal(a, b)
        for a, b in zip(without.result.parameters(), given.result.parameters(), strict=True)
    )


@pytest.mark.parametrize("entry", defenses.ALL, ids=name_of)
def test_is_documented(entry: Defense) -> None:
    module = inspect.getmodule(entry.run)
    assert module is not None
    assert module.__doc__
    assert re.search(r"[Dd]ifferences from|disagree", module.__doc__)
    assert entry.run.__doc__
    assert entry.paper == "control" or re.fullmatch(
        r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,9}/\S+", entry.paper
    )
    if entry.paper != "control":
        assert entry.paper in module.__doc__


@pytest.mark.parametrize("entry", defenses.ALL, ids=name_of)
def test_hyper_parameters_have_simple_defaults_and_a_comment(entry: Defense) -> None:
    source = inspect.getsource(entry.run)
    for name, default in entry.hyper_parameters().items():
        assert default is None or isinstance(default, int | float | str | bool)
        line = re.search(rf"^ +{name}: [^#\n]+=[^#\n]+,  # \S.*$", source, re.MULTILINE)
        assert line, f"{name} needs a trailing comment: its unit and where its default comes from"
    assert entry.resolve({}) == entry.hyper_parameters()
