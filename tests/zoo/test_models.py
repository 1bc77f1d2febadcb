"""What could break: the declared structure disagrees with the network, or our layers with torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.layers import ByteDropout, FastELU
from zoo.models import ARCHITECTURES, ArchSpec, build_model, clone


def make(name, width=0.125, classes=7, norm="batch"):
    generator = torch.Generator().manual_seed(0)
    spec = ArchSpec(name=name, num_classes=classes, width=width, norm=norm)
    return build_model(spec, generator)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_adapter_agrees_with_the_forward_pass(name, norm):
    model, images = make(name, norm=norm), torch.rand(3, 3, 32, 32)
    maps = model.stages(images)
    features = model.features(images)
    torch.testing.assert_close(model.head(features), model(images))
    torch.testing.assert_close(model.flatten(maps[-1]), features)
    assert model(images).shape == (3, 7)
    assert len(maps) == len(model.stage_names()) - 1
    sizes = [m.shape[-1] for m in maps]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_belongs_to_one_stage_and_stages_run_shallow_to_deep(name, norm):
    model = make(name, norm=norm)
    stages = [model.stage_of(n) for n in model.state_dict() if n not in ("mean", "std")]
    order = model.stage_names()
    places = [order.index(stage) for stage in stages]
    assert places == sorted(places)
    assert set(stages) == set(order)
    with pytest.raises(KeyError):
        model.stage_of("mean")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pairs_are_all_convolutions_each_with_the_normalisation_that_follows(name):
    model = make(name)
    pairs = model.conv_bn_pairs()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert {id(conv) for conv, _ in pairs} == {id(conv) for conv in convolutions}
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: seen.append((m, i[0].data_ptr(), o.data_ptr())))
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d)
    ]
    model(torch.rand(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    output_of = {id(m): out for m, _, out in seen}
    input_of = {id(m): into for m, into, _ in seen}
    for conv, bn in pairs:  # the data that a convolution writes is what its partner reads
        assert output_of[id(conv)] == input_of[id(bn)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_twin_with_group_normalisation_mixes_no_images_and_has_no_other_weights(name):
    model, batch = make(name, norm="group"), make(name)
    assert model.conv_bn_pairs() == []
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert shapes == {n: p.shape for n, p in batch.named_parameters()}
    assert dict(model.named_buffers()).keys() == {"mean", "std"}  # no statistics of other images
    images = torch.rand(4, 3, 32, 32)
    for m in model.modules():
        m.train(not isinstance(m, ByteDropout))
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-4, rtol=1e-4)
    copy = clone(model.eval())
    assert copy.spec.norm == "group"
    assert torch.equal(copy(images), model(images))


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (12, 4), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    model = make("small_vgg", width=channels / 32, norm="group")
    assert next(m for m in model.modules() if isinstance(m, nn.GroupNorm)).num_groups == groups


def test_sizes_are_the_published_ones():
    count = lambda name: sum(  # noqa: E731
        p.numel() for p in build_model(ArchSpec(name=name, num_classes=10)).parameters()
    )
    assert count("resnet18") == 11_173_962
    small = build_model(ArchSpec(name="small_vgg", num_classes=10))
    assert small.head.in_features == 2048  # I-BAU Table 7


def test_normalisation_is_inside():
    model = make("small_vgg")
    expected = (torch.tensor([0.5, 0.5, 0.5]) - 0.5) / 0.25
    assert torch.equal(model.normalise(torch.full((1, 3, 2, 2), 0.5))[0, :, 0, 0], expected)


def test_same_generator_same_weights_and_clone_is_independent():
    first, second = make("resnet18"), make("resnet18")
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    copy = clone(first)
    with torch.no_grad():
        copy.head.weight.zero_()
    assert float(first.head.weight.detach().abs().sum()) > 0


def test_spec_survives_json():
    spec = ArchSpec(name="vgg16", num_classes=43, width=0.5, mean=(0.1, 0.2, 0.3))
    assert ArchSpec.from_dict(spec.to_dict()) == spec
    assert spec.label == "vgg16*0.5"
    group = ArchSpec(name="vgg16", num_classes=43, norm="group")
    assert ArchSpec.from_dict(group.to_dict()) == group


def test_the_json_form_of_the_usual_normalisation_is_as_before_there_was_another():
    """Stored victims hold it, and hashes are made of it."""
    spec = ArchSpec(name="vgg16", num_classes=43)
    assert spec.to_dict().keys() == {"name", "num_classes", "width", "image_shape", "mean", "std"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ArchSpec(name="alexnet", num_classes=10), "expected an architecture"),
        (ArchSpec(name="vgg16", num_classes=10, width=0.0), "expected 0 < width"),
        (ArchSpec(name="vgg16", num_classes=10, norm="layer"), "expected norm in batch, group"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_model(spec)


def test_elu_is_torchs_and_can_be_differentiated_twice():
    x = torch.randn(64, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(FastELU()(x), F.elu(x))
    assert torch.autograd.gradcheck(FastELU(), x)
    assert torch.autograd.gradgradcheck(FastELU(), x)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = torch.ones(64, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    layer = ByteDropout(0.3).train()
    torch.manual_seed(0)
    y = layer(x)
    kept = (y > 0).double().mean().item()
    assert abs(kept - 179 / 256) < 0.005  # 0.3 is rounded to 77/256
    assert abs(y.mean().item() - 1) < 0.01
    assert torch.equal(layer.eval()(x), x)
    per_position = (y > 0).double().mean(dim=0)
    assert per_position.min() > 0.4  # 64 images, five standard deviations below 0.7
