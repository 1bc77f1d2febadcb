"""The joint search against a loop per class; schedule, outliers, detection and unlearning."""

from __future__ import annotations

import importlib
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from defenses._inversion import (
    Schedule,
    Search,
    Triggers,
    blend,
    endless_batches,
    frozen,
    invert,
    mask_norm,
    squash,
    unsquash,
)
from defenses._outliers import anomaly_index, flag_small
from defenses._unlearning import Stamp, Unlearning, stamp_share, unlearn
from defenses.base import NotApplicableError, NotDetectedError
from defenses.nc import nc, nc_oracle
from tests.defenses.conftest import CLASSES, TARGET, Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import DivergedError

MODULE = importlib.import_module("defenses.nc")  # the package has a function of that name
SHORT = Search(
    rounds=6, round_steps=2, search_batch=8, search_lr=0.1, patience=2, initial_cost=1e-3
)
LONG = {
    "rounds": 15,
    "round_steps": 2,
    "search_batch": 16,
    "search_lr": 0.3,
    "patience": 1,
    "steps": 60,
}


def assert_untouched(model: Classifier, toy: Toy) -> None:
    before = toy.victim.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training


def slow_search(model: Classifier, images: Tensor, t: int, search: Search) -> tuple[Tensor, ...]:
    """One class after the card: plain loops, numpy's random numbers replaced by view_of's."""
    g = torch.Generator().manual_seed(0)
    start_mask = torch.rand(CLASSES, 1, 16, 16, generator=g)[t]
    start_pattern = torch.rand(CLASSES, 3, 16, 16, generator=g)[t]
    a, b = (
        torch.tensor(np.arctanh((v.double().numpy() - 0.5) * (2 + 1e-7)), dtype=torch.float32)
        for v in (start_mask, start_pattern)
    )
    a.requires_grad_()
    b.requires_grad_()
    adam = torch.optim.Adam([a, b], lr=search.search_lr, betas=(0.5, 0.9))
    batches = endless_batches(len(images), search.search_batch, g)
    cost, up, down, best = 0.0, 0, 0, None
    for _ in range(search.rounds):
        hits = total = 0
        for _ in range(search.round_steps):
            x = images[next(batches)]
            m, p = a.tanh() / (2 + 1e-7) + 0.5, b.tanh() / (2 + 1e-7) + 0.5
            logits = model(torch.stack([(1 - m) * image + m * p for image in x]))
            hits += int((logits.argmax(1) == t).sum())
            total += len(x)
            loss = F.cross_entropy(logits, torch.full((len(x),), t)) + cost * m.abs().sum()
            a.grad, b.grad = torch.autograd.grad(loss, [a, b])
            adam.step()
        m, p = (a.tanh() / (2 + 1e-7) + 0.5).detach(), (b.tanh() / (2 + 1e-7) + 0.5).detach()
        if hits / total >= 0.99:
            up, down = up + 1, 0
            if best is None or m.sum() < best[0].sum():
                best = (m, p)
        else:
            up, down = 0, down + 1
        if up == search.patience:
            cost, up = (cost * 2 if cost else search.initial_cost), 0
        if down == search.patience:
            cost, down = cost / 2**1.5, 0
    return best or (m, p)


def test_the_joint_search_equals_a_slow_one_per_class(toy: Toy) -> None:
    images, labels = textures(20, 3)
    model = toy.copy()
    search = Search(**{**asdict(SHORT), "rounds": 10, "patience": 1, "initial_cost": 1e-2})
    found = invert(model, view_of(), images, labels, range(CLASSES), mask_norm, search)
    with frozen(model):
        for t in range(CLASSES):
            mask, pattern = slow_search(model, images, t, search)
            torch.testing.assert_close(found.masks[t], mask, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.patterns[t], pattern, rtol=1e-3, atol=1e-3)


def test_the_number_of_classes_per_pass_does_not_matter(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = textures(8, 3), toy.copy()
    whole = invert(model, view_of(), *data, range(CLASSES), mask_norm, SHORT)
    monkeypatch.setattr("defenses._inversion.IMAGES_PER_PASS", 1)
    single = invert(model, view_of(), *data, range(CLASSES), mask_norm, SHORT)
    torch.testing.assert_close(whole.masks, single.masks, rtol=1e-4, atol=1e-4)


def test_the_search_leaves_the_classifier_as_it_was(toy: Toy) -> None:
    model = toy.copy().train()  # dropout and batch statistics would move it
    invert(model, view_of(), *textures(8, 3), range(CLASSES), mask_norm, SHORT)
    assert_untouched(model, toy)


def test_weights_thaw_after_an_error(toy: Toy) -> None:
    model = toy.copy()
    frozen_before = next(model.parameters()).requires_grad_(False)

    def fail() -> None:
        with frozen(model):
            assert not any(p.requires_grad for p in model.parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen_before]


def test_squash_is_the_paper_s_and_inverts() -> None:
    a = np.linspace(-4, 4, 41)
    expected = np.tanh(a) / (2 + 1e-7) + 0.5
    variable = torch.tensor(a)
    np.testing.assert_allclose(squash(variable).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(unsquash(squash(variable)), variable, rtol=1e-4, atol=1e-4)
    ends = unsquash(torch.tensor([0.0, 1.0]))
    assert ends.isfinite().all()
    assert ((squash(ends) > 0) & (squash(ends) < 1)).all()


def test_blend_at_its_ends_and_under_normalisation(toy: Toy) -> None:
    g = torch.Generator().manual_seed(0)
    x, p = torch.rand(2, 5, 3, 16, 16, generator=g)
    m = torch.rand(1, 16, 16, generator=g)
    assert torch.equal(blend(x, torch.zeros_like(m), p[0]), x)
    assert torch.equal(blend(x, torch.ones_like(m), p[0]), p[:1].expand_as(x))
    normalise = toy.victim.normalise
    torch.testing.assert_close(
        normalise(blend(x, m, p[0])), blend(normalise(x), m, normalise(p[:1]))
    )


def test_cost_follows_success_and_failure() -> None:
    schedule = Schedule(Search(**{**asdict(SHORT), "patience": 2, "initial_cost": 1e-3}))
    costs = []
    for success in [1.0, 0.5, 1.0, 0.99, 1.0, 1.0, 0.98, 1.0, 0.9, 0.0, 0.0, 0.0]:
        schedule.update(success, 10.0)
        costs.append(schedule.cost)
    low = 2e-3 / 2**1.5
    expected = [0, 0, 0, 1e-3, 1e-3, 2e-3, 2e-3, 2e-3, 2e-3, low, low, low / 2**1.5]
    assert costs == pytest.approx(expected)


def test_only_masks_that_work_are_kept() -> None:
    schedule = Schedule(SHORT)
    rounds = [(0.5, 1.0), (1.0, 9.0), (1.0, 9.5), (0.9, 2.0), (0.99, 8.0)]
    assert [schedule.update(*r) for r in rounds] == [False, True, False, False, True]
    assert schedule.best == 8.0


def test_a_search_ends_after_both_costs_and_five_patiences_without_progress() -> None:
    def finish(successes: list[float]) -> int | None:
        schedule = Schedule(Search(**{**asdict(SHORT), "patience": 1}))
        for r, success in enumerate(successes):
            schedule.update(success, 10.0 - 1e-3 * r)  # smaller every time, by less than 1 %
            if schedule.done:
                return r
        return None

    assert finish([1.0] * 50) is None  # the cost was never too high
    assert finish([0.0] * 50) is None
    assert finish([1.0] + [0.0] * 50) is None  # nor, since it was set, too low
    assert finish([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) == 5


def test_a_finished_class_is_frozen_and_costs_nothing(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, seen = toy.copy(), textures(8, 3), []
    monkeypatch.setattr("defenses._inversion.Schedule.done", property(lambda s: s.best < math.inf))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    search = Search(**{**asdict(SHORT), "rounds": 200})
    found = invert(model, view_of(), *data, range(CLASSES), mask_norm, search)
    assert seen[0] == CLASSES * 8
    assert sorted(seen, reverse=True) == seen
    assert len(seen) < 400  # it ended when all had worked once
    for t in range(CLASSES):  # ... and what was kept still works, though others went on
        hits = model(found.stamps([t])[0](data[0])).argmax(1) == t
        assert hits.float().mean() >= 0.9


def test_masks_of_ten_classes_by_hand() -> None:
    norms = torch.tensor([100.0, 102, 98, 101, 99, 103, 97, 100, 101, 20])
    deviation = np.abs(norms.numpy() - 100.0)
    expected = deviation / (1.4826 * np.median(deviation))
    index = anomaly_index(norms)
    np.testing.assert_allclose(index.numpy(), expected, rtol=1e-6)
    assert float(index[9]) == pytest.approx(35.97, abs=0.01)  # torch's lower median: 53.96
    assert flag_small(norms, index, 2.0) == (9,)
    norms[9] = 500.0
    assert flag_small(norms, anomaly_index(norms), 2.0) == ()
    even = torch.full((10,), 7.0)
    assert flag_small(even, anomaly_index(even), 2.0) == ()


def test_finds_and_unlearns_the_toy_backdoor(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    # Of four classes MAD is a poor judge: half of them define what is usual.
    model = nc(toy.copy(), view, **LONG, index_threshold=1.0)  # type: ignore[arg-type]
    finding = view.finding
    assert finding is not None
    assert finding.flagged == (TARGET,)
    others = [float(v) for t, v in enumerate(finding.values) if t != TARGET]
    assert float(finding.values[TARGET]) < 0.5 * min(others)
    assert finding.triggers is not None
    assert finding.triggers.shape == (CLASSES, 3, 16, 16)
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.5
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


def test_pictures_and_stamps_by_hand() -> None:
    mask, pattern = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4)
    mask[0, :, 0, 0], mask[1, :, 1, 1] = 1.0, 0.5
    pattern[1] = 1.0
    triggers = Triggers(masks=mask, patterns=pattern)
    black, pale = torch.full((2, 3, 4, 4), 0.5)
    black[:, 0, 0], pale[:, 1, 1] = 0.0, 0.75
    assert torch.equal(triggers.pictures(), torch.stack([black, pale]))
    assert triggers.norms().tolist() == [1.0, 0.5]
    image = torch.full((1, 3, 4, 4), 0.2)
    second, first = (stamp(image) for stamp in triggers.stamps([1, 0]))
    assert first[0, 0, 0, 0] == 0.0
    assert second[0, :, 1, 1].tolist() == pytest.approx([0.6] * 3)
    assert second[0, 0, 0, 0] == pytest.approx(0.2)


def test_nothing_detected_is_said_and_nothing_done(toy: Toy) -> None:
    model, view = toy.copy(), view_of(*textures(8, 3))
    with pytest.raises(NotDetectedError, match=r"above 900; the largest index is \d+\.\d\d, of cl"):
        nc(model, view, rounds=2, round_steps=1, index_threshold=900.0)
    assert_untouched(model, toy)
    assert view.finding is not None
    assert view.finding.flagged == ()
    torch.testing.assert_close(view.finding.index, anomaly_index(view.finding.values))


@pytest.mark.parametrize("k", [1, 2])
def test_two_classes_cannot_be_judged(k: int) -> None:
    spec = ArchSpec(name="small_vgg", num_classes=k, width=0.1, image_shape=(3, 16, 16))
    model = build_model(spec, torch.Generator().manual_seed(0))
    view = view_of(textures(8, 3)[0], torch.arange(8) % k, num_classes=k)
    with pytest.raises(NotDetectedError, match=f"cannot judge {k} class"):
        nc(model, view, rounds=1, round_steps=1)


def test_all_flagged_classes_are_unlearned(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps: list[object] = []
    monkeypatch.setattr(MODULE, "unlearn", lambda *args, **_: stamps.extend(args[4]))
    view = view_of(*textures(8, 3))
    nc(toy.copy(), view, rounds=1, round_steps=1, index_threshold=0.0)
    assert view.finding is not None
    assert len(stamps) == len(view.finding.flagged) == CLASSES // 2


def test_triggers_take_turns_within_a_batch_and_from_batch_to_batch() -> None:
    stamps = [lambda x, v=v: torch.full_like(x, v) for v in (1.0, 2.0, 3.0)]
    images = torch.zeros(10, 1, 1, 1)

    def values(share: float, first: int) -> list[float]:
        return stamp_share(images, stamps, share, first).flatten().tolist()

    assert values(0.5, 0) == [1, 2, 3, 1, 2] + [0] * 5
    assert values(0.5, 5) == [3, 1, 2, 3, 1] + [0] * 5
    assert values(0.01, 1) == [2] + [0] * 9
    assert not images.any()


def test_a_small_batch_unlearns_every_trigger_in_time(toy: Toy) -> None:
    used: list[int] = []

    def stamp_of(number: int) -> Stamp:
        def stamp(images: Tensor) -> Tensor:
            used.append(number)
            return images

        return stamp

    images, labels = textures(4, 3)
    how = Unlearning(share=0.25, lr=0.0, steps=6, batch_size=4, momentum=0.0, weight_decay=0.0)
    unlearn(toy.copy(), view_of(), images, labels, [stamp_of(n) for n in range(3)], how)
    assert used == [0, 1, 2, 0, 1, 2]


def test_the_search_ignores_labels(toy: Toy) -> None:
    images, labels = textures(8, 3)
    args = (range(CLASSES), mask_norm, SHORT)
    first = invert(toy.copy(), view_of(), images, labels, *args)
    assert torch.equal(
        first.masks, invert(toy.copy(), view_of(), images, labels.flip(0), *args).masks
    )


def test_the_oracle_unlearns_the_class_it_is_told(toy: Toy) -> None:
    view = view_of(*textures(200, 3))
    view.target = TARGET
    model = nc_oracle(toy.copy(), view, **LONG)  # type: ignore[arg-type]
    assert toy.attack_success(model) < toy.attack_success(toy.victim) - 0.5
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1


def test_the_oracle_needs_a_target(toy: Toy) -> None:
    with pytest.raises(NotApplicableError, match="target"):
        nc_oracle(toy.copy(), view_of(*textures(8, 3)))


def test_a_broken_model_diverges(toy: Toy) -> None:
    model = toy.copy()
    with torch.no_grad():
        model.head.bias[1] = math.nan
    with pytest.raises(DivergedError, match="not finite in round 0 of 2"):
        nc(model, view_of(*textures(8, 3)), rounds=2, round_steps=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rounds": 0}, "expected rounds > 0, got 0"),
        ({"search_lr": -0.1}, "expected search_lr > 0, got -0.1"),
        ({"initial_cost": -1.0}, "expected initial_cost >= 0, got -1.0"),
        ({"share": 1.5}, "expected 0 <= share <= 1, got 1.5"),
        ({"share": 0.0}, "expected share > 0, got 0.0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nc(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
    view = view_of(*textures(4, 3))
    view.target = TARGET
    with pytest.raises(ValueError, match=message):
        nc_oracle(toy.copy(), view, **overrides)  # type: ignore[arg-type]
