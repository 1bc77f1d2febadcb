"""Which channels go, how many, that they stay gone, and what tiny budgets leave out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defenses._holdout import hold_out
from defenses.fp import channel_activations, channel_of_feature, fp, tolerated_count, turns
from tests.defenses.conftest import CLASSES, Toy, textures, view_of
from zoo.models import ArchSpec, Classifier, build_model
from zoo.train import predict_logits

NAMES = ["small_vgg", "resnet18", "vgg16"]
WIDTHS = {"small_vgg": 0.125, "resnet18": 0.0625, "vgg16": 0.0625}


def fresh(name: str) -> Classifier:
    spec = ArchSpec(name=name, num_classes=CLASSES, width=WIDTHS[name])
    model = build_model(spec, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def noise(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def last_map(model: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.stages(images)[-1]


def zeroed_columns(model: Classifier) -> Tensor:
    return (model.head.weight == 0).all(0)


class Colours(Classifier):
    """Class 0 is red and class 1 green; blue is dormant, and a backdoor to class 0."""

    def __init__(self) -> None:
        super().__init__(ArchSpec(name="colours", num_classes=2, mean=(0.0,) * 3, std=(1.0,) * 3))
        self.stage = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.stage[0].weight.copy_(torch.eye(3)[:, :, None, None])
            self.stage[0].bias.zero_()
            self.head.weight.copy_(torch.tensor([[1.0, -1.0, 9.0], [-1.0, 1.0, -9.0]]))
            self.head.bias.zero_()
        self.eval()

    def stage_modules(self) -> Sequence[nn.Module]:
        return [self.stage]

    def flatten(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def conv_bn_pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        return []


def red_and_green(n: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 3, 4, 4)
    images[torch.arange(n), labels] = 0.5 + 0.5 * torch.rand(
        n, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    return images, labels


@pytest.mark.parametrize("steps", [0, 5])
def test_a_backdoor_in_a_dormant_channel_is_removed_exactly(steps: int) -> None:
    images, labels = red_and_green(200)
    stamped = images.clone()
    stamped[:, 2] = 0.5
    assert (predict_logits(Colours(), stamped).argmax(1) == 0).all()
    view = view_of(images, labels, num_classes=2)
    model = fp(Colours(), view, steps=steps, chunk=0.3, batch_size=32)
    assert zeroed_columns(model).tolist() == [False, False, True]
    assert view.curve[0] == {"step": 0, "pruned": 1, "channels": 3, "held_out": 40}
    assert torch.equal(predict_logits(model, stamped).argmax(1), labels)


@pytest.mark.parametrize("name", NAMES)
def test_activations_equal_a_loop_over_images_and_positions(name: str) -> None:
    model, images = fresh(name), noise(5)
    maps = last_map(model, images).double().numpy()
    n, channels, height, width = maps.shape
    expected = [
        sum(maps[i, c, y, x] for i in range(n) for y in range(height) for x in range(width))
        / (n * height * width)
        for c in range(channels)
    ]
    np.testing.assert_allclose(channel_activations(model, images).numpy(), expected, atol=1e-6)


def test_channels_go_in_the_order_of_rising_activation() -> None:
    means = torch.tensor([0.2, -0.9, 0.2, 3.0, 0.0])
    assert turns(means).tolist() == [2, 0, 3, 4, 1]
    random = torch.randn(200, generator=torch.Generator().manual_seed(0))
    order = np.argsort(random.numpy(), kind="stable")
    assert [int(turns(random)[c]) for c in order] == list(range(200))


@pytest.mark.parametrize("name", NAMES)
def test_every_feature_knows_its_channel(name: str) -> None:
    model, images = fresh(name), noise(1)
    owner, last = channel_of_feature(model, images[0]), last_map(model, images)
    before = model.flatten(last)[0]
    for c in range(last.shape[1]):
        changed = last.clone()
        changed[:, c] += 1.0
        assert torch.equal(model.flatten(changed)[0] != before, owner == c)


@pytest.mark.parametrize("name", NAMES)
def test_pruning_equals_zeroing_the_channels_of_the_last_stage(name: str) -> None:
    images, labels = noise(12), torch.arange(12) % CLASSES
    model = fresh(name)
    maps = last_map(model, images)
    dormant = maps.mean((0, 2, 3)).argsort()[: round(0.5 * maps.shape[1])]
    maps[:, dormant] = 0.0
    with torch.no_grad():
        expected = model.head(model.flatten(maps))
    pruned = fp(model, view_of(images, labels), fixed_share=0.5, steps=0)
    torch.testing.assert_close(predict_logits(pruned, images), expected)


def test_nothing_pruned_and_no_steps_change_nothing(toy: Toy) -> None:
    model = fp(toy.copy(), view_of(*textures(12, 3)), fixed_share=0.0, steps=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, toy.victim.state_dict()[name]), name


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("chunk", [1, 3])
def test_count_equals_a_loop_that_prunes_copies(tolerance: float, chunk: int) -> None:
    g = torch.Generator().manual_seed(0)
    head = nn.Linear(10, 3)
    with torch.no_grad():
        head.weight.normal_(generator=g)
    features = torch.randn(60, 10, generator=g)
    labels = head(features).argmax(1)
    labels[::7] = 0
    turn = torch.randperm(5, generator=g).repeat_interleave(2)  # five channels of two features
    w, b, x = head.weight.detach().numpy(), head.bias.detach().numpy(), features.numpy()

    def wrong(count: int) -> int:
        kept = np.where(turn.numpy() < count, 0.0, w)
        return int(((x @ kept.T + b).argmax(1) != labels.numpy()).sum())

    expected = 0
    while expected + chunk < 5 and wrong(expected + chunk) - wrong(0) <= tolerance * 60:
        expected += chunk
    assert tolerated_count(head, features, labels, turn, chunk, tolerance) == expected


def test_the_last_good_count_is_kept_and_one_channel_stays() -> None:
    head = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 2.0, -2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    features, labels, turn = torch.ones(10, 4), torch.zeros(10).long(), torch.arange(4)
    # Right with 0 and 1 pruned, wrong with 2, right again with 3, which nobody gets to see.
    assert tolerated_count(head, features, labels, turn, 1, 0.1) == 1
    assert tolerated_count(head, features, labels, turn, 1, 1.0) == 3


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_what_is_pruned_satisfies_the_tolerance_on_the_hold_out(toy: Toy, tolerance: float) -> None:
    images, labels = textures(150, 3)
    view = view_of(images, labels, seed=5)
    model = fp(toy.copy(), view, tolerance=tolerance, steps=0)
    cut = hold_out(labels, torch.Generator().manual_seed(5))
    assert cut is not None
    held, truth = images[cut[1]], labels[cut[1]]

    def accuracy(judged: Classifier) -> float:
        return float((predict_logits(judged, held).argmax(1) == truth).float().mean())

    assert accuracy(toy.victim) - accuracy(model) <= tolerance + 1e-6
    count, channels = int(view.curve[0]["pruned"]), int(view.curve[0]["channels"])
    assert 0 < count < channels
    # One chunk (three channels of 64) more would not have: the ranking is that of the other images.
    order = last_map(toy.victim, images[cut[0]]).mean((0, 2, 3)).argsort()
    further, four = toy.copy(), toy.victim.head.in_features // channels
    with torch.no_grad():
        for c in order[: count + round(0.05 * channels)].tolist():
            further.head.weight[:, four * c : four * (c + 1)] = 0.0
    assert accuracy(toy.victim) - accuracy(further) > tolerance


def test_pruned_columns_stay_exactly_zero_while_the_rest_is_trained(toy: Toy) -> None:
    images, labels = textures(40, 3)  # a hold-out of fewer than 20: half of the channels
    view = view_of(images, labels)
    pruned = zeroed_columns(fp(toy.copy(), view_of(images, labels), steps=0))
    model = fp(toy.copy(), view, steps=3, lr=0.1)
    assert int(pruned.sum()) == model.head.in_features // 2
    assert torch.equal(zeroed_columns(model), pruned)
    before = toy.victim.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        if name not in ("mean", "std"):
            assert not torch.equal(tensor, before[name]), name
    assert [point["step"] for point in view.curve] == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, CLASSES, 15])
def test_small_budgets_only_rank_and_need_no_labels(toy: Toy, n: int) -> None:
    images, labels = textures(n, 3)
    model = fp(toy.copy(), view_of(images, labels), fixed_share=0.25)
    assert int(zeroed_columns(model).sum()) == model.head.in_features // 4
    other = fp(toy.copy(), view_of(images, 3 - labels), fixed_share=0.25)
    before = toy.victim.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        if name != "head.weight":
            assert torch.equal(tensor, before[name]), name


def test_one_image_of_each_of_many_classes_is_still_ranking_only(toy: Toy) -> None:
    images, labels = textures(43, 3)
    few = fp(toy.copy(), view_of(images, labels, num_classes=43), steps=2)
    more = fp(toy.copy(), view_of(images, labels, num_classes=42), steps=2)
    key = "blocks.0.0.weight"
    assert torch.equal(few.state_dict()[key], toy.victim.state_dict()[key])
    assert not torch.equal(more.state_dict()[key], toy.victim.state_dict()[key])


def test_prunes_the_toy_and_keeps_accuracy(toy: Toy) -> None:
    view = view_of(*textures(120, 3))
    model = fp(toy.copy(), view, steps=15, batch_size=32)
    assert view.curve[0]["pruned"] >= 16
    assert toy.accuracy(model) > toy.accuracy(toy.victim) - 0.1
    assert toy.attack_success(model) < toy.attack_success(toy.victim)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tolerance": 1.5}, "expected 0 <= tolerance <= 1, got 1.5"),
        ({"chunk": 0.0}, "expected chunk > 0, got 0.0"),
        ({"fixed_share": -0.1}, "expected 0 <= fixed_share <= 1, got -0.1"),
        ({"steps": -1}, "expected steps >= 0, got -1"),
        ({"batch_size": 0}, "expected batch_size > 0, got 0"),
    ],
)
def test_errors(toy: Toy, overrides: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fp(toy.copy(), view_of(*textures(4, 3)), **overrides)  # type: ignore[arg-type]
