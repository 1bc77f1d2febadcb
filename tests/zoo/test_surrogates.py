"""What could break: noise outside its ball, a surrogate that is not robust, an asset of other data."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacks import AdversarialImages, LabelConsistent
from attacks._adversarial import perturb
from tests.preparations import seeded, toy_model
from zoo import build as building
from zoo import surrogates
from zoo.asset_recipes import MaterialRecipe, Robust, SurrogateRecipe, asset_from_dict
from zoo.assets import AssetStore
from zoo.data import Library
from zoo.errors import UserError
from zoo.models import ArchSpec, build_model
from zoo.recipes import VictimRecipe
from zoo.seeds import generator_of
from zoo.store import Zoo
from zoo.surrogates import adversarial_loss, build_asset
from zoo.train import Recipe, predict_logits, train

SHAPE = (3, 16, 16)


def recipe(kind="robust", **changes):
    fields = {
        "dataset": "cifar10",
        "arch": "small_vgg",
        "width": 0.125,
        "training": Recipe(epochs=1, batch_size=64, lr=0.05),
        "kind": kind,
        "robust": Robust(epochs=1, steps=1) if kind == "robust" else None,
    }
    return SurrogateRecipe(**{**fields, **changes})


def material(**changes):
    fields = {"target": 0, "epsilon": 16.0, "step": 8.0, "steps": 2}
    return MaterialRecipe(surrogate=recipe(), material=AdversarialImages(**{**fields, **changes}))


def unit(n, shape=SHAPE, seed=1):
    """Images in [0, 1], some pixels at the ends."""
    return torch.rand(n, *shape, generator=seeded(seed)).mul(1.4).sub(0.2).clamp(0, 1)


class Spy(nn.Module):
    """A classifier that remembers what it was called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs, self.modes = model, [], []

    def forward(self, images):
        self.inputs.append(images.detach().clone())
        self.modes.append([m.training for m in self.model.modules()])
        return self.model(images)


def random_start(images, seed, progress, epsilon):
    noise = torch.rand(images.shape, generator=generator_of(seed, progress))
    return (images + epsilon * (2 * noise - 1)).clamp(0, 1)


def slow_worst(model, image, start, label, epsilon, steps):
    """PGD from a start, by the definition, for one image ``(C, H, W)`` in float64."""
    size = min(1.25, 2.5 / steps) * epsilon
    worst = start
    for _ in range(steps):
        worst = worst.clone().requires_grad_(True)
        loss = -torch.log_softmax(model(worst[None])[0], dim=0)[label]
        (gradient,) = torch.autograd.grad(loss, worst)
        worst = worst.detach() + size * gradient.sign()
        worst = image + (worst - image).clamp(-epsilon, epsilon)
        worst = worst.clamp(0, 1)
    return worst


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_inner_attack_is_its_definition(steps):
    model = Spy(toy_model(SHAPE).double())
    images, labels = unit(5).double(), torch.tensor([0, 7, 3, 3, 9])
    loss = adversarial_loss(Robust(steps=steps, epsilon=8.0), seed=4)(model, images, labels, 0.25)
    starts = random_start(images, 4, 0.25, 8 / 255)
    reference = torch.stack(
        [
            slow_worst(model.model, image, start, label, 8 / 255, steps)
            for image, start, label in zip(images, starts, labels, strict=True)
        ]
    )
    assert len(model.inputs) == steps + 1
    torch.testing.assert_close(model.inputs[0], starts)
    same = (model.inputs[-1] - reference).abs() < 1e-9
    assert float(same.double().mean()) > 0.99  # gradients of 0 in float32 logits may go either way
    torch.testing.assert_close(
        loss.double(), F.cross_entropy(model.model(reference), labels), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [2.0, 8.0])
def test_everything_the_model_sees_is_an_image_within_epsilon(steps, epsilon):
    model, images = Spy(toy_model(SHAPE)), unit(6)
    adversarial_loss(Robust(steps=steps, epsilon=epsilon), 0)(model, images, torch.arange(6), 0.5)
    for seen in model.inputs:
        assert float((seen - images).abs().max()) <= epsilon / 255 + 1e-6
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    # And the last has used what it may: pixels that are not at an end moved by all of epsilon.
    moved = (model.inputs[-1] - images).abs()[(images > 0.1) & (images < 0.9)]
    assert float((moved > 0.99 * epsilon / 255).double().mean()) > 0.5


def test_one_step_is_fgsm_from_a_random_start():
    """On a linear model, where the sign of the gradient is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], 2))
    spy, images, labels = Spy(model), unit(4), torch.tensor([0, 1, 1, 0])
    adversarial_loss(Robust(steps=1, epsilon=8.0), 6)(spy, images, labels, 0.0)
    epsilon = 8 / 255
    start = random_start(images, 6, 0.0, epsilon) - images
    away = (model[1].weight[1 - labels] - model[1].weight[labels]).sign().view(-1, *SHAPE)
    expected = images + (start + 1.25 * epsilon * away).clamp(-epsilon, epsilon)
    torch.testing.assert_close(spy.inputs[-1], expected.clamp(0, 1).detach())


def test_starts_depend_on_progress_and_seed_and_on_nothing_else():
    def start(seed, progress):
        model = Spy(toy_model(SHAPE))
        robust = Robust(steps=1)
        adversarial_loss(robust, seed)(model, unit(3), torch.arange(3), progress)
        return model.inputs[0]

    one = start(1, 0.25)
    torch.randn(5)  # a global generator that moved on
    assert torch.equal(one, start(1, 0.25))
    assert not torch.equal(one, start(1, 0.5))
    assert not torch.equal(one, start(2, 0.25))


def test_the_attack_runs_in_eval_mode_and_every_module_gets_its_mode_back():
    model = toy_model(SHAPE).requires_grad_(True)
    model.train()
    frozen = model.blocks[0][1]
    frozen.eval()  # as where batch normalisation is frozen
    modes = [m.training for m in model.modules()]
    seen = {name: value.clone() for name, value in frozen.state_dict().items()}
    spy = Spy(model)
    spy.training = True
    loss = adversarial_loss(Robust(steps=3), 0)(spy, unit(6), torch.arange(6), 0.0)
    assert [any(entry) for entry in spy.modes] == [False, False, False, True]
    assert spy.modes[-1] == modes
    assert [m.training for m in model.modules()] == modes
    assert spy.training
    # Batch statistics are of the last pass alone, and only that one is trained on.
    assert int(model.blocks[1][1].num_batches_tracked) == 1
    assert all(torch.equal(seen[name], value) for name, value in frozen.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def brittle(count, seed):
    """Four classes with two features: one that robust models must take, one that is better.

    The brighter quadrant is right for 5 images in 8 of every class, and no noise of 8 levels hides
    it. Two channels are tinted by 4 levels, always right, and noise of 8 levels paints them over.

    Returns:
        ``uint8 (N, 3, 32, 32)``, labels, and what the quadrant says.
    """
    generator = seeded(seed)
    labels = torch.arange(count) % 4
    kept = torch.rand(count, generator=generator) < 0.5
    bright = torch.where(kept, labels, torch.randint(4, (count,), generator=generator))
    images = 128 + torch.randint(-4, 5, (count, 3, 32, 32), generator=generator)
    images[:, 0] += 4 * (2 * (labels % 2) - 1)[:, None, None]
    images[:, 1] += 4 * (2 * (labels // 2) - 1)[:, None, None]
    for quadrant in range(4):
        row, column = 16 * (quadrant // 2), 16 * (quadrant % 2)
        images[bright == quadrant, :, row : row + 16, column : column + 16] += 48
    return images.byte(), labels, bright


@pytest.fixture(scope="module")
def plain_and_robust():
    """Two models trained equally long, and from the same weights."""
    torch.set_num_threads(1)
    images, labels, _ = brittle(256, 1)
    spec = ArchSpec(name="small_vgg", num_classes=4, width=0.125)
    training = Recipe(epochs=5, batch_size=32, lr=0.05)
    models = []
    for loss in (None, adversarial_loss(Robust(steps=1, epsilon=8.0), 3)):
        model = build_model(spec, seeded())
        train(model, images, labels, training, generator=seeded(1), loss=loss)
        models.append(model.requires_grad_(False))
    return models


def test_a_robust_model_takes_the_feature_that_noise_cannot_hide(plain_and_robust):
    images, labels, bright = brittle(128, 2)

    def accuracies(model):
        noisy = perturb(model, images, labels, epsilon=8.0, step=2.0, steps=10)
        guesses = [predict_logits(model, part).argmax(1) for part in (images, noisy)]
        return [float((guess == labels).double().mean()) for guess in guesses]

    best_robust = float((bright == labels).double().mean())
    assert 0.5 < best_robust < 0.8
    plain, robust = (accuracies(model) for model in plain_and_robust)
    assert plain[0] > 0.95
    assert plain[1] < 0.1
    assert robust == pytest.approx([best_robust] * 2, abs=0.06)


def test_the_adversarial_loss_of_a_trained_model_is_larger(plain_and_robust):
    images, labels, _ = brittle(64, 3)
    images = images.float() / 255
    for model in plain_and_robust:  # in eval mode: nothing is random but the start
        clean = float(F.cross_entropy(model(images), labels))
        starts = random_start(images, 5, 0.0, 8 / 255)
        from_start = float(F.cross_entropy(model(starts), labels))
        one, many = (
            float(adversarial_loss(Robust(steps=steps), 5)(model, images, labels, 0.0))
            for steps in (1, 10)
        )
        assert clean < one <= many * 1.001
        assert from_start < one


@pytest.fixture(scope="module")
def library(toy_data, tmp_path_factory):
    return Library(data=toy_data, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def built(library, tmp_path_factory):
    """A root with a robust surrogate and a material made on it."""
    root = tmp_path_factory.mktemp("assets")
    for asset in (recipe(), material()):
        build_asset(asset, root, library, "cpu", 1)
    return root


@pytest.fixture
def own(built, tmp_path):
    """A private copy of that root, for tests that damage it."""
    import shutil

    shutil.copytree(built, tmp_path / "own")
    return tmp_path / "own"


def test_a_surrogate_is_stored_with_what_it_is(built, library):
    store = AssetStore(built)
    meta = store.find(recipe())
    data = library.load("cifar10")
    assert meta["data_fingerprint"] == data.fingerprint
    assert meta["label"] == "cifar10 small_vgg*0.125 robust surrogate"
    assert asset_from_dict(meta["recipe"]) == recipe()
    model = store.surrogate(recipe())
    assert not any(m.training for m in model.modules())
    guesses = predict_logits(model, data.test.images).argmax(1)
    assert meta["acc"] == float((guesses == data.test.labels).double().mean())
    files = {p.name for p in store.folder(recipe()).iterdir()}
    assert files == {"asset.json", "tensors.safetensors"}  # no checkpoint, nothing temporary


def test_a_surrogate_reproduces_and_differs_from_every_other_model(built, library, tmp_path):
    """It has random numbers of its own: a clean one is no clean twin."""
    build_asset(recipe(), tmp_path, library, "cpu", 1)
    build_asset(recipe("clean"), tmp_path, library, "cpu", 1)
    twin = VictimRecipe(
        dataset="cifar10", arch="small_vgg", width=0.125, seed=0, training=recipe().training
    )
    building.build(twin, tmp_path, library, "cpu", 1)
    first, again = AssetStore(built), AssetStore(tmp_path)
    assert first.find(recipe())["tensors_sha256"] == again.find(recipe())["tensors_sha256"]
    robust, clean = again.tensors(recipe()), again.tensors(recipe("clean"))
    weights = Zoo(tmp_path).find(twin).model().state_dict()
    for a, b in ((robust, clean), (clean, weights), (robust, weights)):
        assert not torch.allclose(a["head.weight"], b["head.weight"], atol=1e-2)


def test_how_long_and_on_what_a_surrogate_is_trained(library, tmp_path, monkeypatch):
    seen = []

    def spy(model, images, labels, training, **more):
        del model, labels
        seen.append((len(images), training.epochs, training.lr, more["loss"] is not None))

    monkeypatch.setattr(surrogates, "train", spy)
    training = Recipe(epochs=7, batch_size=64, lr=0.03)
    for kind, robust in (("clean", None), ("robust", Robust(epochs=2, steps=1))):
        one = recipe(kind, training=training, robust=robust, train_images=120)
        build_asset(one, tmp_path, library, "cpu", 1)
    assert seen == [(120, 7, 0.03, False), (120, 2, 0.03, True)]


def test_a_material_is_made_on_its_surrogate(built, library):
    store, data = AssetStore(built), library.load("cifar10")
    made = store.tensors(material())
    rows = (data.train.labels == 0).nonzero().flatten()
    assert torch.equal(made["rows"], rows)
    model = store.surrogate(recipe()).requires_grad_(False)
    labels = torch.zeros_like(rows)
    expected = perturb(model, data.train.images[rows], labels, epsilon=16.0, step=8.0, steps=2)
    assert torch.equal(made["images"], expected)
    meta = store.find(material())
    assert asset_from_dict(meta["recipe"]) == material()
    assert meta["data_fingerprint"] == data.fingerprint


def test_a_victim_of_a_subset_is_trained_on_the_images_of_its_own_rows(own, library, monkeypatch):
    """From the material to the training set and the stored trigger."""
    attack = LabelConsistent(epsilon=16.0, step=8.0, steps=2)
    victim = VictimRecipe(
        dataset="cifar10", arch="small_vgg", width=0.125, seed=0, attack=attack, train_images=120,
        training=recipe().training, robust=Robust(epochs=1, steps=1),
    )  # fmt: skip
    (wanted,) = victim.materials(target=0, num_classes=10)
    build_asset(wanted.surrogate, own, library, "cpu", 1)
    build_asset(wanted, own, library, "cpu", 1)
    trained_on = []

    def spy(model, images, labels, *arguments, **more):
        trained_on.append((images.clone(), labels.clone()))
        return train(model, images, labels, *arguments, **more)

    monkeypatch.setattr(building, "train", spy)
    meta = building.build(victim, own, library, "cpu", 1)
    _, assets = Zoo(own).find(victim).attack()
    assert set(assets) == {"cell"}

    ((images, labels),) = trained_on
    data = library.load("cifar10")
    rows = building._rows(victim, data)
    assert torch.equal(labels, data.train.labels[rows])
    clean, made = data.train.images[rows], AssetStore(own).tensors(wanted)
    changed = (images != clean).flatten(1).any(1)
    assert int(changed.sum()) == meta["poisoned_images"] == round(0.8 * int((labels == 0).sum()))
    assert (labels[changed] == 0).all()
    places = torch.searchsorted(made["rows"], rows[changed])
    assert torch.equal(images[changed], attack.trigger(made["images"][places], assets))


def test_what_an_attack_needs_must_be_built_before(library, tmp_path):
    with pytest.raises(UserError, match="robust surrogate: not built yet; run: bench build-zoo"):
        build_asset(material(), tmp_path, library, "cpu", 1)
    store = AssetStore(tmp_path)
    assert store.find(material()) is None
    with pytest.raises(UserError, match=r"adversarial_images\[target=0, .*: not built yet"):
        store.tensors(material())
    with pytest.raises(UserError, match="not built yet"):
        store.surrogate(recipe())


def test_recipes_survive_json_and_hash_every_input():
    shared = [
        recipe(),
        recipe("clean"),
        recipe(dataset="gtsrb"),
        recipe(width=0.25),
        recipe(arch="vgg16"),
        recipe(train_images=100),
        recipe(training=Recipe(epochs=2)),
        *(recipe(robust=Robust(**changed)) for changed in ({"epochs": 2}, {"epsilon": 4.0})),
    ]
    made = [material(), material(target=1), material(epsilon=8.0), material(steps=3)]
    others = [dataclasses.replace(material(), surrogate=one) for one in shared[2:]]
    everything = [*shared, *made, *others]
    assert len({one.hash() for one in everything}) == len(everything)
    assert len({one.folder() for one in everything}) == len(everything)
    for one in everything:
        assert asset_from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_an_interrupted_save_is_no_asset(own):
    store = AssetStore(own)
    (store.folder(recipe()) / "asset.json").unlink()
    assert store.find(recipe()) is None
    with pytest.raises(UserError, match="not built yet"):
        store.surrogate(recipe())


def test_an_asset_of_another_recipe_is_not_found(own):
    """Folders carry eight digits of the hash; the metadata decides."""
    store = AssetStore(own)
    path = store.folder(recipe()) / "asset.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "recipe_hash": "0" * 64}))
    assert store.find(recipe()) is None


@pytest.mark.parametrize("text", ["{", "", "[]", "{}", '"text"', "null"])
def test_damaged_metadata_names_itself(own, text):
    store = AssetStore(own)
    (store.folder(recipe()) / "asset.json").write_text(text)
    for use in (store.find, store.tensors, store.surrogate):
        with pytest.raises(UserError, match=r"cannot read .*asset\.json: .*Delete the folder"):
            use(recipe())


def test_damaged_tensors_name_themselves(own):
    store = AssetStore(own)
    path = store.folder(recipe()) / "tensors.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"cannot read .*tensors\.safetensors.*builds it again"):
        store.surrogate(recipe())
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # readable, one bit off
    with pytest.raises(UserError, match=r"tensors\.safetensors is not what asset\.json says"):
        store.surrogate(recipe())
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*tensors\.safetensors"):
        store.tensors(recipe())


def test_a_material_without_its_surrogate_s_weights_is_an_error(own, library):
    store = AssetStore(own)
    (store.folder(recipe()) / "tensors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"cannot read .*robust-.*tensors\.safetensors"):
        build_asset(material(target=1), own, library, "cpu", 1)
    assert store.find(material(target=1)) is None
