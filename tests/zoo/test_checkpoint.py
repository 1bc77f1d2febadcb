"""What could break: a resumed training ends a bit away from an undisturbed one, or on half a file."""

import dataclasses
import json
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attacks import BadNets, InputAware, WaNet
from zoo import build as building
from zoo import checkpoint as module
from zoo.asset_recipes import Robust
from zoo.assets import AssetStore
from zoo.augment import Augmentation
from zoo.build import build
from zoo.checkpoint import CHECKPOINT, Checkpoint, identity_of
from zoo.data import Library
from zoo.errors import StorageError
from zoo.models import ArchSpec, build_model
from zoo.recipes import VictimRecipe
from zoo.surrogates import build_asset
from zoo.tensors import read_tensors
from zoo.train import Recipe, cross_entropy, train

EPOCHS, BATCHES = 4, 3
RECIPE = Recipe(epochs=EPOCHS, batch_size=8, lr=0.05, nesterov=True, schedule="cosine")
PARTS = ("model.", "momentum.", "generator", "augmenting", "dropout", "position", "also.")


class KilledError(Exception):
    """Stands for a kill: nothing is cleaned up, nothing is saved."""


class Companion:
    """Trained beside the classifier: brightness per class, with momentum and random numbers."""

    def __init__(self):
        self.shift = torch.zeros(10, requires_grad=True)
        self.speed = torch.zeros(10)
        self.generator = torch.Generator().manual_seed(11)

    def loss(self, model, images, labels, progress):
        noise = torch.rand(len(images), generator=self.generator)
        return cross_entropy(
            model, images + (noise * self.shift[labels])[:, None, None, None], labels, progress
        )

    def step(self):
        with torch.no_grad():
            self.speed = 0.9 * self.speed + self.shift.grad
            self.shift -= 0.1 * self.speed
        self.shift.grad = None

    def state(self):
        states = {"shift": self.shift.detach(), "speed": self.speed}
        return {**states, "generator": self.generator.get_state()}

    def load_state(self, state):
        with torch.no_grad():
            self.shift.copy_(state["shift"])
        self.speed = state["speed"].clone()
        self.generator.set_state(state["generator"])


def go(checkpoint_at=None, stop_before=None, saves=None, spoil="", recipe=RECIPE):
    """A training with everything that has a state: its end, or an interruption before a step.

    Args:
        checkpoint_at: the file, None for a training without one.
        stop_before: the optimiser step at which it is interrupted.
        saves: the epochs after which it is saved; None for all.
        spoil: prefix of the entries that are lost from the checkpoint.
    """
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels, companion, reports = torch.arange(24) % 4, Companion(), []
    model = build_model(ArchSpec(name="small_vgg", num_classes=4, width=0.125), generator)
    model.blocks[0].requires_grad_(False)  # frozen: no gradient, no momentum
    steps = count()

    class File(Checkpoint):
        epoch = 0

        @property
        def due(self):
            self.epoch += 1
            return saves is None or self.first + self.epoch in saves

        def load(self):
            fresh = companion.state()
            saved = super().load()
            self.first = 0 if saved is None else int(saved["position"][0])
            if saved is None or not spoil:
                return saved
            if spoil == "also.":
                companion.load_state(fresh)
            kept = {k: v for k, v in saved.items() if not k.startswith(spoil)}
            return kept if spoil == "momentum." else {**saved, **self.spoilt(saved)}

        @staticmethod
        def spoilt(saved):
            other = torch.Generator().manual_seed(1).get_state()
            wrong = {"position": torch.tensor([int(saved["position"][0]), 0])}
            wrong |= dict.fromkeys(("generator", "augmenting", "dropout"), other)
            wrong |= {k: v + 1 for k, v in saved.items() if k.startswith("model.")}
            return {k: v for k, v in wrong.items() if k.startswith(spoil)}

    def loss(model, batch, labels, progress):
        if checkpoint.first * BATCHES + next(steps) == stop_before:
            raise KilledError
        return companion.loss(model, batch, labels, progress)

    def covers(epoch, images):
        draw = torch.Generator().manual_seed(epoch)
        images[:5] = torch.randint(0, 256, (5, 3, 32, 32), generator=draw).byte()

    checkpoint = File(checkpoint_at, "it", also=companion) if checkpoint_at else Nothing()
    train(
        model,
        images,
        labels,
        recipe,
        generator=generator,
        augmentation=Augmentation(crop=2),
        loss=loss,
        after_step=companion.step,
        on_epoch=covers,
        report=reports.append,
        checkpoint=checkpoint if checkpoint_at else None,
    )
    return {**model.state_dict(), **companion.state()}, reports


class Nothing:
    first = 0


@pytest.fixture(scope="module")
def undisturbed():
    torch.set_num_threads(1)
    return go()


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


@given(
    stops=st.lists(st.integers(0, EPOCHS * BATCHES - 1), min_size=1, max_size=3),
    saves=st.sets(st.integers(1, EPOCHS - 1)),
)
@settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_ends_as_if_it_had_not_been_interrupted(tmp_path_factory, undisturbed, stops, saves):
    """Killed before any steps, saved after any epochs: same weights, statistics and losses."""
    path = tmp_path_factory.mktemp("training") / CHECKPOINT
    for stop in stops:
        with pytest.raises(KilledError):
            go(path, stop_before=max(stop, resumed_at(path)), saves=saves)
    first = resumed_at(path) // BATCHES
    end, reports = go(path, saves=saves)
    assert same(end, undisturbed[0])
    assert reports == undisturbed[1][first:]
    assert first == max((s for s in saves if s <= max(stops) // BATCHES), default=0)


def resumed_at(path):
    """The step that a training goes on with."""
    return int(read_tensors(path)["train.position"][1]) if path.exists() else 0


@pytest.mark.parametrize("lost", PARTS)
def test_everything_that_is_saved_is_needed(tmp_path, undisturbed, lost):
    """The test above can fail: without any one part the end is another."""
    path = tmp_path / CHECKPOINT
    with pytest.raises(KilledError):
        go(path, stop_before=2 * BATCHES + 1)
    assert not same(go(path, spoil=lost)[0], undisturbed[0])


def test_an_interruption_within_a_cut_epoch(tmp_path):
    """Seven steps of three an epoch: the third epoch has one."""
    recipe = dataclasses.replace(RECIPE, steps=7)
    with pytest.raises(KilledError):
        go(tmp_path / CHECKPOINT, stop_before=6, recipe=recipe)
    assert resumed_at(tmp_path / CHECKPOINT) == 6
    assert same(go(tmp_path / CHECKPOINT, recipe=recipe)[0], go(recipe=recipe)[0])


def test_nothing_is_saved_after_the_last_epoch(tmp_path):
    go(tmp_path / CHECKPOINT)
    assert resumed_at(tmp_path / CHECKPOINT) == (EPOCHS - 1) * BATCHES
    go(tmp_path / "one", recipe=dataclasses.replace(RECIPE, epochs=1))
    assert not (tmp_path / "one").exists()


def some_tensors():
    return {
        "scalar": torch.tensor(3),
        "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "none": torch.empty(0, 4),
        "strided": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


def test_what_is_saved_is_loaded(tmp_path):
    tensors = some_tensors()
    Checkpoint(tmp_path / "file", "it").save(tensors)
    loaded = Checkpoint(tmp_path / "file", "it").load()
    assert same(loaded, tensors)
    assert all(loaded[k].dtype == tensors[k].dtype for k in tensors)


def test_a_file_of_another_identity_is_ignored(tmp_path):
    checkpoint = Checkpoint(tmp_path / "file", "it")
    checkpoint.save(some_tensors())
    assert Checkpoint(tmp_path / "file", "something else").load() is None
    assert Checkpoint(tmp_path / "nowhere", "it").load() is None
    checkpoint.discard()
    checkpoint.discard()
    assert checkpoint.load() is None


@given(st.data())
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_a_damaged_file_is_ignored(tmp_path_factory, data):
    """One changed bit anywhere, in the header, the seal or the values; or a part of the file."""
    path = tmp_path_factory.mktemp("damaged") / "file"
    Checkpoint(path, "it").save({"a": torch.arange(5.0), "b": torch.arange(3)})
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        changed = bytearray(whole)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(changed)
    assert Checkpoint(path, "it").load() is None


def test_the_identity_holds_what_decides_the_bits():
    images = {"images": torch.zeros(2, 3, dtype=torch.uint8)}
    one = identity_of("hash", "cpu", 1, images, None)
    assert one == identity_of("hash", "cpu", 1, images, None)
    brighter = {"images": images["images"] + 1}
    others = [
        identity_of("other", "cpu", 1, images, None),
        identity_of("hash", "cpu", 2, images, None),
        identity_of("hash", "cuda", 1, images, None),
        identity_of("hash", "cpu", 1, brighter, None),
        identity_of("hash", "cpu", 1, images, {"w": torch.zeros(1)}),
        identity_of("hash", "cpu", 1, None, images),
    ]
    assert len({one, *others}) == 7
    # On an accelerator the threads of the CPU decide nothing, nor does the number of the card.
    assert identity_of("hash", "cuda:0", 1, images) == identity_of("hash", "cuda:1", 4, images)


def test_saving_takes_a_fixed_share_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def write(tensors, path):
        now[0] += 3  # seconds

    monkeypatch.setattr(module, "save_tensors", write)
    checkpoint = Checkpoint(tmp_path / "file", "it")
    assert checkpoint.due  # nothing is known of the cost yet
    checkpoint.save({})
    assert not checkpoint.due
    now[0] += 3 / module.SHARE - 1
    assert not checkpoint.due
    now[0] += 1
    assert checkpoint.due


# --- victims and surrogates -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(BadNets):
    """Its trigger's brightness is trained with the classifier."""

    def companion(self, preparation, assets, device):
        return TrainedTrigger()


class TrainedTrigger(Companion):
    def assets(self):
        return {"shift": self.shift.detach().repeat(3)}


def recipe_of(attack, epochs=4):
    return VictimRecipe(
        dataset="cifar10",
        arch="small_vgg",
        width=0.125,
        seed=0,
        training=Recipe(epochs=epochs, batch_size=100),
        attack=attack,
        robust=Robust(epochs=3, steps=2),
    )


@pytest.fixture
def library(toy_data, tmp_path):
    return Library(data=toy_data, cache=tmp_path / "cache")


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupts a training when it has been saved so often; every epoch is saved."""

    def stop(saves):
        left = count(saves - 1, -1)
        real = Checkpoint.save

        def save(self, tensors):
            real(self, tensors)
            if next(left) == 0:
                raise KilledError

        monkeypatch.setattr(Checkpoint, "save", save)
        monkeypatch.setattr(Checkpoint, "due", True)

    return stop


# A twin; covers; companions: a toy one and the one that there is.
BUILT = [None, WaNet(), Trained(), InputAware(channels=4, mask_epochs=1)]


@pytest.mark.parametrize("attack", BUILT, ids=["twin", "wanet", "companion", "input_aware"])
def test_a_victim_built_in_four_goes_is_the_same_victim(attack, library, tmp_path, stop_after):
    recipe = recipe_of(attack)
    expected = build(recipe, tmp_path / "whole", library, "cpu", 1)
    whole, folder = tmp_path / "whole/zoo" / recipe.folder(), tmp_path / "zoo" / recipe.folder()
    stop_after(1)
    with pytest.raises(KilledError):
        build(recipe, tmp_path, library, "cpu", 1)
    for _ in range(2):
        stop_after(1)  # on top of the first: the next save
        with pytest.raises(KilledError):
            build(recipe, tmp_path, library, "cpu", 1)
        assert (folder / CHECKPOINT).exists()
        assert not (folder / "victim.json").exists()
    meta = build(recipe, tmp_path, library, "cpu", 1)
    assert meta["weights_sha256"] == expected["weights_sha256"]
    assert meta.get("trigger_sha256") == expected.get("trigger_sha256")
    assert (folder / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()
    assert not (folder / CHECKPOINT).exists()
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.parametrize("moment", ["before the line is written", "after it"])
def test_the_log_has_every_epoch_once(library, tmp_path, monkeypatch, moment):
    """The log is ahead of the checkpoint by an epoch or more, or level with it."""
    real, calls = building.write_atomic, count()

    def write(path, text):
        if next(calls) == 2:
            if moment == "after it":
                real(path, text)
            raise KilledError
        real(path, text)

    monkeypatch.setattr(Checkpoint, "due", True)
    monkeypatch.setattr(building, "write_atomic", write)
    recipe = recipe_of(None)
    with pytest.raises(KilledError):
        build(recipe, tmp_path, library, "cpu", 1)
    build(recipe, tmp_path, library, "cpu", 1)
    log = tmp_path / "zoo" / recipe.folder() / "train.jsonl"
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_log_that_is_longer_than_the_training_is_cut(library, tmp_path):
    """A checkpoint that cannot be used, and a log of the training that left it."""
    recipe = recipe_of(None, epochs=1)
    folder = tmp_path / "zoo" / recipe.folder()
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n" * 9)
    (folder / CHECKPOINT).write_bytes(b"damaged")
    build(recipe, tmp_path, library, "cpu", 1)
    (line,) = (folder / "train.jsonl").read_text().splitlines()
    assert json.loads(line)["epoch"] == 0
    assert not (folder / CHECKPOINT).exists()


def test_other_threads_start_from_the_beginning(library, tmp_path, stop_after):
    """Two threads may add up in another order: the meta data would not tell the truth."""
    recipe = recipe_of(None, epochs=2)
    stop_after(1)
    with pytest.raises(KilledError):
        build(recipe, tmp_path, library, "cpu", 2)
    meta = build(recipe, tmp_path, library, "cpu", 1)
    expected = build(recipe, tmp_path / "whole", library, "cpu", 1)
    assert meta["weights_sha256"] == expected["weights_sha256"]


@pytest.mark.parametrize("kind", ["clean", "robust"])
def test_a_surrogate_goes_on_too(kind, library, tmp_path, stop_after):
    recipe = recipe_of(BadNets()).surrogate(kind)
    build_asset(recipe, tmp_path / "whole", library, "cpu", 1)
    stop_after(2)
    with pytest.raises(KilledError):
        build_asset(recipe, tmp_path, library, "cpu", 1)
    store = AssetStore(tmp_path)
    assert (store.folder(recipe) / CHECKPOINT).exists()
    assert store.find(recipe) is None
    build_asset(recipe, tmp_path, library, "cpu", 1)
    assert same(store.tensors(recipe), AssetStore(tmp_path / "whole").tensors(recipe))
    assert not (store.folder(recipe) / CHECKPOINT).exists()


def test_a_full_disk_is_told_apart_from_a_training_that_failed(library, tmp_path, monkeypatch):
    def write(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "write_atomic", write)
    with pytest.raises(StorageError, match=r"cannot write .*train.jsonl.*Is the disk full"):
        build(recipe_of(None), tmp_path, library, "cpu", 1)
