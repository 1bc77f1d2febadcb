"""What could break: an asset built from other data, or found where there is none."""

import dataclasses
import json

import pytest
import torch

from attacks import AdversarialImages, LabelConsistent
from attacks._adversarial import perturb
from zoo import build as building
from zoo import surrogates
from zoo.asset_recipes import MaterialRecipe, Robust, SurrogateRecipe, asset_from_dict
from zoo.assets import AssetStore
from zoo.data import Library
from zoo.errors import UserError
from zoo.recipes import VictimRecipe
from zoo.store import Zoo
from zoo.surrogates import build_asset
from zoo.train import Recipe, predict_logits, train


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
