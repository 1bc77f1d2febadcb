"""The generators against NumPy, the batch that is trained on image by image, and resuming."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from attacks import InputAware, Preparation
from attacks import _generators as generators
from attacks.input_aware import (
    MASK,
    PATTERN,
    PATTERN_MILESTONES,
    blend,
    distance,
    diversity,
    mask_loss,
    near_binary,
)
from tests.conftest import coloured
from tests.preparations import assets_of, preparation_of, seeded, toy_model
from zoo.build import build
from zoo.checkpoint import Checkpoint
from zoo.data import Library
from zoo.evaluate import predict
from zoo.models import ArchSpec, build_model
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.train import Recipe, train

CPU = torch.device("cpu")


def tiny(**changes):
    return InputAware(**{"mask_epochs": 1, "channels": 4, **changes})


def batch(n=40, shape=(3, 16, 16), seed=1):
    images = torch.rand(n, *shape, generator=seeded(seed))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(n) % 10


def joint(attack, shape=(3, 16, 16), target=3):
    """A companion and what the attack had prepared for it."""
    preparation = preparation_of(attack, shape, target=target)
    assets = attack.prepare(preparation)
    return attack.companion(preparation, assets, CPU), assets


class Recorder(torch.nn.Module):
    """A linear classifier of the pixels that keeps what it was given."""

    def __init__(self, shape=(3, 16, 16)):
        super().__init__()
        values = torch.randn(10, int(np.prod(shape)), generator=seeded(5)) / 10
        self.weights = torch.nn.Parameter(values)

    def forward(self, images):
        self.seen = images.detach()
        return images.flatten(1) @ self.weights.T


def settled(network, images):
    """State of a network in which nothing is at its neutral value and the statistics are true."""
    with torch.no_grad():
        for n, parameter in enumerate(network.parameters()):
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=seeded(n)) + 0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # one batch decides
        network.train()(images)
    return generators.state_of(network, "")


def lively(shape=(3, 16, 16)):
    """Assets with which G and M tell images apart, M within all of [0, 1]."""
    images, assets = torch.rand(20, *shape, generator=seeded(3)), {}
    for prefix, c_out, seed in ((PATTERN, shape[0], 1), (MASK, 1, 2)):
        state = settled(generators.fresh(shape[0], c_out, 4, seeded(seed)), images)
        state["up.2.4.bias"].zero_()
        assets |= {prefix + name: value for name, value in state.items()}
    return assets


# The networks and the formulas ------------------------------------------------------------------


def upsampling(n, size):
    """The ``(size, n)`` matrix of linear interpolation between the centres of pixels."""
    matrix = np.zeros((size, n))
    for i in range(size):
        position = np.clip((i + 0.5) * n / size - 0.5, 0, n - 1)
        low = int(position)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, n - 1)] += position - low
    return matrix


def layer(x, state, name, active=True):
    """3x3 convolution as nine shifted products, stored batch statistics, ReLU; in float64."""
    convolution, norm = name, f"{name[:-1]}{int(name[-1]) + 1}"
    weight = state[f"{convolution}.weight"]
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = sum(
        np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(3)
        for j in range(3)
    )
    column = {k: state[f"{norm}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    out = (out - column["running_mean"]) / np.sqrt(column["running_var"] + 1e-5)
    out = out * column["weight"] + column["bias"]
    return np.maximum(out, 0) if active else out


def reference(images, state):
    """The generator from its description, in NumPy."""
    state = {name: value.double().numpy() for name, value in state.items()}
    x, sizes = images, []
    for block in range(3):
        x = layer(layer(x, state, f"down.{block}.0"), state, f"down.{block}.3")
        sizes.append(x.shape[2:])
        height, width = (s // 2 * 2 for s in x.shape[2:])
        corners = [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
        x = np.max(corners, axis=0)
    x = layer(x, state, "middle.0")
    for block in range(3):
        height, width = sizes[2 - block]
        rows, columns = upsampling(x.shape[2], height), upsampling(x.shape[3], width)
        x = np.einsum("ih,nchw,jw->ncij", rows, x, columns)
        x = layer(layer(x, state, f"up.{block}.0"), state, f"up.{block}.3", active=block < 2)
    return np.tanh(x) / 2 + 0.5


@pytest.mark.parametrize(("shape", "c_out"), [((3, 32, 32), 1), ((1, 19, 12), 1), ((3, 8, 9), 3)])
def test_generator_equals_its_description(shape, c_out):
    images = torch.rand(3, *shape, generator=seeded(3))
    state = settled(generators.fresh(shape[0], c_out, 4, seeded(2)), images)
    got = generators.run(images, state, "", c_out)
    assert got.shape == (3, c_out, *shape[1:])
    expected = reference(images.double().numpy(), state)
    assert expected.std() > 0.01
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_masks_are_nearly_binary():
    raw = torch.linspace(0, 1, 101)
    mask = near_binary(raw)
    torch.testing.assert_close(mask.double(), (40 * raw.double() - 20).sigmoid(), atol=1e-6, rtol=0)
    assert mask[[0, 50, 100]].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_blend_is_the_image_outside_the_mask_and_the_pattern_inside():
    (x, _), (pattern, _) = batch(), batch(seed=2)
    mask = torch.zeros(40, 1, 16, 16)
    assert torch.equal(blend(x, pattern, mask), x)
    mask[:, :, :8] = 1
    made = blend(x, pattern, mask)
    assert torch.equal(made[:, :, 8:], x[:, :, 8:])
    torch.testing.assert_close(made[:, :, :8], pattern[:, :, :8])
    torch.testing.assert_close(blend(x, pattern, mask, 3) - x, 3 * (made - x))


def test_losses_equal_their_definition():
    (x1, _), (x2, _) = batch(5), batch(5, seed=2)
    m1, m2 = x1[:, :1] ** 2, x2[:, :1] ** 2
    rms = lambda a, b: float(((a.double() - b.double()) ** 2).mean() ** 0.5)  # noqa: E731
    expected = np.mean([rms(a, b) / (rms(p, q) + 1e-7) for a, b, p, q in zip(x1, x2, m1, m2)])  # noqa: B905
    assert float(diversity(x1, x2, m1, m2)) == pytest.approx(expected, rel=1e-5)

    hinge = np.maximum(m1.double().numpy() - 0.032, 0).mean()
    pairs = np.mean([rms(x1[i], x1[i - 1]) / (rms(m1[i], m1[i - 1]) + 1e-7) for i in range(5)])
    assert float(mask_loss(x1, m1)) == pytest.approx(100 * hinge + pairs, rel=1e-5)


def test_equal_images_and_equal_patterns_leave_gradients_finite():
    x, _ = batch(6)
    made = torch.full((6, 3, 16, 16), 0.25, requires_grad=True)
    diversity(x, x.roll(1, 0), made, made.roll(1, 0)).backward()
    assert made.grad.isfinite().all()
    assert distance(x, x).tolist() == [0.0] * 6


# The trigger ------------------------------------------------------------------------------------


def constant(assets, pattern, mask):
    """Assets whose last normalisation makes G's and M's raw output the same everywhere."""
    changed = {name: value.clone() for name, value in assets.items()}
    for prefix, value in ((PATTERN, pattern), (MASK, mask)):
        changed[f"{prefix}up.2.4.weight"].zero_()
        changed[f"{prefix}up.2.4.bias"].fill_(np.arctanh(2 * value - 1))
    return changed


def test_trigger_equals_its_definition_after_rounding():
    attack = tiny()
    images = torch.randint(256, (4, 3, 16, 16), generator=seeded(1)).byte()
    assets = constant(assets_of(attack, (3, 16, 16)), pattern=0.8, mask=0.52)
    mask = 1 / (1 + np.exp(-40 * (0.52 - 0.5)))  # 0.69
    for strength in (1, 2, 3):
        exact = images.numpy() + strength * (255 * 0.8 - images.numpy()) * mask
        got = attack.amplified(images, strength, assets).numpy()
        np.testing.assert_allclose(got, exact.clip(0, 255), atol=0.5 + 1e-3)


def test_pixels_outside_the_mask_do_not_change():
    attack = tiny()
    images = torch.randint(256, (8, 3, 16, 16), generator=seeded(1)).byte()
    assets = lively()
    mask = near_binary(generators.run(images / 255, assets, MASK, 1))
    assert mask.shape == (8, 1, 16, 16)
    assert torch.equal(mask, mask.clamp(0, 1))
    outside = (mask < 1e-3).expand_as(images)
    assert 0.1 < outside.float().mean() < 0.9
    changed = attack.trigger(images, assets) != images
    assert not changed[outside].any()
    assert changed[(mask > 0.9).expand_as(images)].float().mean() > 0.9


def test_every_image_gets_a_trigger_of_its_own():
    images = torch.rand(6, 3, 16, 16, generator=seeded(1))
    for prefix, c_out in ((PATTERN, 3), (MASK, 1)):
        made = generators.run(images, lively(), prefix, c_out)
        assert distance(made, made.roll(1, 0)).min() > 1e-3


# Stage (a) --------------------------------------------------------------------------------------


def patches(n, seed=0):
    """Discs on a dull ground: something to tell images apart by, as in photographs."""
    generator = seeded(seed)
    centre = torch.rand(n, 2, 1, 1, generator=generator) * 10 + 3
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    disc = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 9)[:, None]
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    noise = torch.rand(n, 3, 16, 16, generator=generator) * 0.1
    return (255 * (torch.where(disc, colour, 0.4) * 0.9 + noise)).byte()


def test_masks_become_sparse_and_stay_different():
    images = patches(400)
    preparation = Preparation(
        images=images, labels=torch.zeros(400).long(), rows=torch.arange(400), target=0,
        num_classes=2, generator=seeded(),
    )  # fmt: skip
    attack = InputAware(channels=4, mask_epochs=25)
    assets = attack.prepare(preparation)
    masks = near_binary(generators.run(patches(200, seed=1) / 255, assets, MASK, 1))
    assert 0.01 < masks.mean() < 0.10
    assert distance(masks, masks.roll(1, 0)).mean() > 0.05


def test_preparation_depends_on_its_generator_alone():
    attack = tiny()
    before = torch.get_rng_state()
    assets = assets_of(attack)
    assert torch.equal(torch.get_rng_state(), before)
    other = assets_of(attack, seed=1)
    torch.manual_seed(12345)
    again = assets_of(attack)
    assert all(torch.equal(assets[name], again[name]) for name in assets)
    weights = [name for name in assets if name.endswith("0.weight")]
    assert not any(torch.equal(assets[name], other[name]) for name in weights)


# Stage (b) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["all-to-one", "all-to-all"])
@pytest.mark.parametrize(
    ("poison_rate", "cross_rate", "attacked", "crossed"),
    [(0.1, 0.1, 4, 4), (0.3, 0.05, 12, 2), (0.1, 0.25, 4, 10), (0.2, 0.0, 8, 0), (0.45, 0.5, 18, 20)],
)  # fmt: skip
def test_a_batch_equals_its_definition_image_by_image(
    rule, poison_rate, cross_rate, attacked, crossed
):
    attack = tiny(poison_rate=poison_rate, cross_rate=cross_rate, label_rule=rule)
    companion, assets = joint(attack)
    model, (images, labels) = Recorder(), batch(40)
    loss = companion.loss(model, images, labels, 0.0).detach()

    donors = [(attacked + crossed + i) % 40 for i in range(max(attacked, crossed))]
    sources = [*range(attacked), *donors]
    pattern = generators.fresh(3, 3, 4, seeded()).train()  # batch statistics of all sources
    generators.load(pattern, assets, PATTERN)
    patterns = pattern(images[sources]).detach()
    masks = near_binary(generators.run(images[sources], assets, MASK, 1))
    expected, goals, ratios = images.clone(), labels.clone(), []
    for i in range(attacked):
        expected[i] += (patterns[i] - images[i]) * masks[i]
        goals[i] = 3 if rule == "all-to-one" else (labels[i] + 1) % 10
        donor = attacked + i
        apart = (images[i] - images[donors[i]]).square().mean().sqrt()
        ratios.append(apart / ((patterns[i] - patterns[donor]).square().mean().sqrt() + 1e-7))
        assert donors[i] != i
    for i in range(crossed):
        place, donor = attacked + i, attacked + i
        expected[place] += (patterns[donor] - images[place]) * masks[donor]
        assert donors[i] != place
    torch.testing.assert_close(model.seen, expected, atol=1e-5, rtol=0)
    assert torch.equal(model.seen[attacked + crossed :], images[attacked + crossed :])
    ce = F.cross_entropy(model(expected), goals).detach()
    assert float(loss) == pytest.approx(float(ce + torch.stack(ratios).mean()), rel=1e-4)


def test_generators_stay_in_float32_under_autocast():
    companion, _ = joint(tiny())
    model, (images, labels) = Recorder(), batch()
    plain = companion.loss(model, images, labels, 0.0).detach()
    seen = model.seen
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = companion.loss(model, images, labels, 0.0).detach()
    assert torch.equal(model.seen, seen)
    assert mixed.dtype == torch.float32
    assert float(mixed) == pytest.approx(float(plain), rel=0.02)


def test_only_the_patterns_are_trained():
    companion, before = joint(tiny())
    model, (images, labels) = Recorder(), batch()
    for step in range(3):
        companion.loss(model, images, labels, step / 3).backward()
        companion.step()
    after = companion.assets()
    assert after.keys() == before.keys()
    for name in before:
        if name.startswith(MASK):
            assert torch.equal(after[name], before[name]), name
        else:
            assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("passed", range(5))
def test_the_rate_drops_after_every_milestone(passed):
    companion, before = joint(tiny())
    progress = [0.0, *PATTERN_MILESTONES][passed]
    model, (images, labels) = Recorder(), batch()
    companion.loss(model, images, labels, progress).backward()
    companion.step()
    name = f"{PATTERN}up.2.4.bias"
    moved = (companion.assets()[name] - before[name]).abs()
    # The first step of Adam has the size of its rate, whatever the gradient.
    torch.testing.assert_close(moved, torch.full((3,), 0.01 * 0.1**passed), rtol=0.01, atol=1e-9)


def gradients(companion):
    return {k: v for k, v in companion.state().items() if k.startswith("adam.gradient.")}


def test_gradients_are_forgotten_or_add_up():
    fresh, adding = joint(tiny())[0], joint(tiny(accumulate=True))[0]
    model, first, second = Recorder(), batch(), batch(seed=2)
    for companion in (fresh, adding):
        companion.loss(model, *first, 0.0).backward()
    one = gradients(fresh)
    assert one
    fresh.step()
    adding.step()
    assert not gradients(fresh)
    assert all(torch.equal(value, one[name]) for name, value in gradients(adding).items())
    for companion in (fresh, adding):
        companion.loss(model, *second, 0.0).backward()
    two, total = gradients(fresh), gradients(adding)
    for name in two:
        torch.testing.assert_close(total[name], one[name] + two[name])


# Interruptions ----------------------------------------------------------------------------------


def advance(companion, steps):
    model = toy_model((3, 16, 16)).train()
    for step in steps:
        images, labels = batch(seed=step)
        companion.loss(model, images, labels, step / 8).backward()
        companion.step()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("stop", [0, 4])
def test_a_restored_companion_goes_on_bit_by_bit(accumulate, stop, tmp_path):
    attack = tiny(accumulate=accumulate)
    whole, part, restored = (joint(attack)[0] for _ in range(3))
    # Something must be there already that restoring has to replace.
    restored.loss(toy_model((3, 16, 16)), *batch(), 0.0).backward()
    restored.step()

    torch.manual_seed(0)
    advance(whole, range(stop))
    torch.manual_seed(0)
    advance(part, range(stop))
    save_file(part.state(), tmp_path / "state.safetensors")
    for name, value in part.state().items():
        assert type(value) is torch.Tensor, name
        assert value.device == CPU, name
    restored.load_state(load_file(tmp_path / "state.safetensors"))
    torch.manual_seed(1)
    advance(whole, range(stop, 8))
    torch.manual_seed(1)
    advance(restored, range(stop, 8))
    expected, got = whole.state(), restored.state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


class KilledError(Exception):
    pass


def victim(attack):
    training = Recipe(epochs=3, batch_size=64, lr=0.05)
    return VictimRecipe(
        dataset="cifar10", arch="small_vgg", width=0.125, seed=0, training=training, attack=attack
    )


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_killed_training_ends_with_the_same_weights_and_trigger(
    accumulate, toy_data, tmp_path, monkeypatch
):
    recipe, library = victim(tiny(accumulate=accumulate)), Library(data=toy_data, cache=tmp_path)
    whole = build(recipe, tmp_path / "whole", library, "cpu", 1)

    steps, step = [], generators.Training.step

    def killed(training, **options):
        steps.append(1)
        if len(steps) == 3 + 5 + 4:  # in the second epoch of stage (b)
            raise KilledError
        step(training, **options)

    monkeypatch.setattr(generators.Training, "step", killed)
    monkeypatch.setattr(Checkpoint, "due", True)
    with pytest.raises(KilledError):
        build(recipe, tmp_path / "killed", library, "cpu", 1)
    folder = Zoo(tmp_path / "killed").folder(recipe)
    assert (folder / "checkpoint.safetensors").exists()
    steps[:] = [1] * 20
    resumed = build(recipe, tmp_path / "killed", library, "cpu", 1)
    assert len(steps) == 20 + 3 + 10  # stage (a) again, two epochs of three
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["trigger_sha256"] == whole["trigger_sha256"]

    stored, assets = Zoo(tmp_path / "killed").find(recipe).attack()
    assert stored == recipe.attack
    assert not torch.equal(assets[f"{PATTERN}up.2.4.bias"], torch.zeros(3))  # as trained
    assert resumed["poisoned_images"] is None


# What it is for ---------------------------------------------------------------------------------


def trained(cross_rate):
    """Accuracy, attack success, and accuracy and success under other images' triggers."""
    pixels, labels = coloured(600, 4, seed=1)
    images = torch.from_numpy(pixels)[:, ::2, ::2].permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(labels)
    preparation = Preparation(
        images=images, labels=labels, rows=torch.arange(600), target=0, num_classes=4,
        generator=seeded(),
    )  # fmt: skip
    attack = InputAware(channels=4, mask_epochs=5, cross_rate=cross_rate)
    companion = attack.companion(preparation, attack.prepare(preparation), CPU)
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.25, image_shape=(3, 16, 16))
    model = build_model(spec, seeded(1))
    train(
        model, images, labels, Recipe(epochs=8, batch_size=64, lr=0.05), generator=seeded(2),
        loss=companion.loss, after_step=companion.step,
    )  # fmt: skip
    assets, others, x = companion.assets(), labels != 0, images / 255
    donors = x.roll(1, 0)  # of another class
    mask = near_binary(generators.run(donors, assets, MASK, 1))
    crossed = predict(model, blend(x, generators.run(donors, assets, PATTERN, 3), mask))
    share = lambda hits: float(hits.float().mean())  # noqa: E731
    acc = share(predict(model, images) == labels)
    asr = share(predict(model, attack.trigger(images, assets))[others] == 0)
    return acc, asr, share(crossed == labels), share(crossed[others] == 0)


def test_without_cross_images_a_trigger_works_on_any_image_and_with_them_it_does_not():
    """That it then works on its own image takes thousands of steps, too many for a test."""
    acc, asr, cross, fired = trained(cross_rate=0.0)
    assert acc > 0.95
    assert asr > 0.95
    assert fired > 0.5
    acc, _, taught, fires = trained(cross_rate=0.1)
    assert acc > 0.95
    assert fires < fired - 0.3
    assert taught > cross + 0.3


# Limits and errors ------------------------------------------------------------------------------


def test_no_image_is_poisoned_beforehand():
    labels = torch.arange(50) % 10
    poison = InputAware().select(labels, 3, 10, seeded(), {})
    assert len(poison.index) == len(poison.labels) == len(poison.cover) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_epochs": 0}, "input_aware: expected mask_epochs >= 1, got 0"),
        ({"channels": 0}, "input_aware: expected channels >= 1, got 0"),
        ({"cross_rate": -0.1}, r"expected cross_rate >= 0 and .*, got 0\.1 \+ -0\.1"),
        ({"poison_rate": 0.5, "cross_rate": 0.5}, r"poison_rate \+ cross_rate < 1, got 0\.5 \+ 0\.5"),
        ({"label_rule": "clean-label"}, "expected label_rule in all-to-one, all-to-all"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        InputAware(**changes)


def test_data_that_cannot_serve_is_refused_before_training():
    labels, shape = torch.arange(100) % 10, (3, 32, 32)
    InputAware().check(labels, 0, 10, shape)
    InputAware().check(labels, 0, 10, (1, 8, 9))
    with pytest.raises(ValueError, match="expected images of at least 8x8, got 7x32"):
        InputAware().check(labels, 0, 10, (3, 7, 32))
    with pytest.raises(ValueError, match="got 0, 0 and 4 of 4; change the rates or the batch size"):
        InputAware().check(labels[:4], 0, 10, shape)
    with pytest.raises(ValueError, match="expected attacked, crossed and .*, got 10, 0 and 90 of"):
        InputAware(cross_rate=0.001).check(labels, 0, 10, shape)
    with pytest.raises(ValueError, match="got 2, 1 and 0 of 3"):
        InputAware(poison_rate=0.5, cross_rate=0.49).check(labels[:3], 0, 10, shape)
    InputAware(cross_rate=0.0).check(labels, 0, 10, shape)


def test_a_batch_that_is_too_small_is_refused_when_it_comes():
    companion, _ = joint(tiny())
    images, labels = batch(4)
    with pytest.raises(ValueError, match="got 0, 0 and 4 of 4"):
        companion.loss(Recorder(), images, labels, 0.0)


def test_cost_follows_the_channels():
    small, large = (assets_of(tiny(channels=c)) for c in (4, 8))
    count = lambda assets: sum(v.numel() for k, v in assets.items() if v.dim() == 4)  # noqa: E731
    assert 3.5 < count(large) / count(small) < 4
    assert dataclasses.replace(tiny(), channels=32).label() == "input_aware[mask_epochs=1]"
