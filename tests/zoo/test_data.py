"""What could break: wrong pixels or labels, near-duplicates on both sides of a cut, unclear errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import coloured, write_parquet
from zoo.data import Library
from zoo.errors import UserError
from zoo.seeds import generator_of, seed_of
from zoo.sets import DATASETS
from zoo.sources import ImageSet
from zoo.splits import carve, split_test, stratified, subset


def library(tmp_path, data=None):
    return Library(data=data, cache=tmp_path / "cache")


def test_parquet_gives_the_pixels_and_labels_that_were_written(tmp_path, toy_data):
    data = library(tmp_path, toy_data).load("cifar10")
    images, labels = coloured(300, 10, 1)
    assert torch.equal(data.train.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == labels
    assert data.num_classes == 10
    assert data.image_shape == (3, 32, 32)


def test_the_cache_is_used_and_disposable(tmp_path, toy_data):
    lib = library(tmp_path, toy_data)
    first = lib.load("cifar10")
    cached = sorted((tmp_path / "cache" / "decoded").iterdir())
    assert len(cached) == 2
    assert lib.load("cifar10").fingerprint == first.fingerprint
    cached[0].write_bytes(b"damaged")
    assert lib.load("cifar10").fingerprint == first.fingerprint


def test_changed_files_are_not_served_from_the_cache(tmp_path):
    images, labels = coloured(40, 4, 1)
    for shift in (0, 1):
        for part in ("train", "test"):
            write_parquet(
                tmp_path / "data" / "svhn" / f"{part}.parquet",
                images + np.uint8(shift),
                labels,
                [""] * 40,
            )
        data = library(tmp_path, tmp_path / "data").load("svhn")
        assert int(data.train.images[0, 0, 0, 0]) == int(images[0, 0, 0, 0]) + shift


def test_other_sizes_are_resized_and_grey_becomes_colour(tmp_path):
    folder = tmp_path / "data" / "svhn"
    images = np.full((10, 64, 48, 3), 200, np.uint8)
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", images, [i % 2 for i in range(10)], [""] * 10)
    data = library(tmp_path, tmp_path / "data").load("svhn")
    assert data.train.images.shape == (10, 3, 32, 32)
    assert bool((data.train.images == 200).all())


def test_folders_of_images(tmp_path):
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("apple", "pear")):
            place = tmp_path / "fruit" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (50 * label, i, 0)).save(place / f"{i}.png")
    lib = library(tmp_path)
    name = lib.adopt(f"folder:{tmp_path / 'fruit'}")
    assert name == "folder:fruit"  # no path gets into recipes and records
    data = lib.load(name)
    assert (len(data.train), len(data.test), data.num_classes) == (12, 6, 2)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert data.train.images[7, :, 0, 0].tolist() == [50, 1, 0]
    assert not data.augmentation.flip


def test_a_test_folder_without_a_class_keeps_the_numbers_and_may_not_have_another(tmp_path):
    for place in ("train/apple", "train/fig", "train/pear", "test/apple", "test/pear"):
        (tmp_path / "fruit" / place).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "fruit" / place / "0.png")
    lib = library(tmp_path)
    assert lib.load(lib.adopt(f"folder:{tmp_path / 'fruit'}")).test.labels.tolist() == [0, 2]
    (tmp_path / "fruit" / "test" / "quince").mkdir()
    lib = library(tmp_path / "again")
    with pytest.raises(UserError, match="test/ has the class 'quince', which train/ has not"):
        lib.load(lib.adopt(f"folder:{tmp_path / 'fruit'}"))


def test_a_folder_without_a_test_part_is_cut(tmp_path):
    for name in ("apple", "pear"):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "fruit" / name / f"{i}.png")
    lib = library(tmp_path)
    data = lib.load(lib.adopt(f"folder:{tmp_path / 'fruit'}"))
    assert (len(data.train), len(data.test)) == (14, 6)
    assert data.test.labels.bincount().tolist() == [3, 3]


def test_torchvisions_layout_of_gtsrb(tmp_path):
    base = tmp_path / "data" / "gtsrb"
    images = base / "GTSRB" / "Training"
    for label in (0, 1):
        (images / f"{label:05d}").mkdir(parents=True)
        for track in range(2):
            for frame in range(3):
                color = (40 * label, 10 * track, frame)
                name = f"{label:05d}/{track:05d}_{frame:05d}.ppm"
                Image.new("RGB", (40, 40), color).save(images / name)
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(test / "00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    data = library(tmp_path, tmp_path / "data").load("gtsrb")
    assert len(data.train) == 12
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert len(data.train.groups.unique()) == 4
    assert data.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", "Did you mean 'cifar10'"),
        ("nonsense", "Known: signs"),
        ("cifar100", "cifar100/train.parquet"),
        ("folder:/does/not/exist", "no such folder"),
    ],
)
def test_missing_sets_are_one_clear_error(tmp_path, toy_data, name, message):
    lib = library(tmp_path, toy_data)
    with pytest.raises(UserError, match=message):
        lib.load(lib.adopt(name))


def test_a_damaged_parquet_names_the_file(tmp_path, toy_data):
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    whole = (toy_data / "cifar10" / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*train.parquet.*Copy it again"):
        library(tmp_path, tmp_path / "data").load("cifar10")


def test_a_parquet_with_other_columns_says_so(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "data" / "cifar10" / "train.parquet")
    with pytest.raises(UserError, match="expected a column image or img, got x"):
        library(tmp_path, tmp_path / "data").load("cifar10")


def test_an_undecodable_image_says_so(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.array([{"bytes": b"no image", "path": ""}])
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    table = pa.table({"image": rows, "label": [0]})
    pq.write_table(table, tmp_path / "data" / "cifar10" / "train.parquet")
    with pytest.raises(UserError, match="image 0 is not an image"):
        library(tmp_path, tmp_path / "data").load("cifar10")


# --- cutting ---


def test_pool_and_evaluation_images_are_disjoint_complete_and_stratified():
    labels = torch.arange(1000) % 10
    split = split_test(labels, "toy", seed=3, pool_size=400)
    assert len(split.pool) == 400
    assert torch.equal(torch.cat([split.pool, split.eval]).sort().values, torch.arange(1000))
    assert labels[split.pool].bincount().tolist() == [40] * 10


def test_the_pool_is_never_more_than_half():
    assert len(split_test(torch.zeros(7, dtype=torch.long), "toy", 0).pool) == 3


def test_splits_differ_by_seed_and_set_and_repeat():
    labels = torch.arange(500) % 5
    base = split_test(labels, "a", 0).pool
    assert torch.equal(base, split_test(labels, "a", 0).pool)
    assert not torch.equal(base, split_test(labels, "a", 1).pool)
    assert not torch.equal(base, split_test(labels, "b", 0).pool)


def test_stratified_takes_exactly_what_is_asked_of_uneven_classes():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 1)
    for size in range(11):
        chosen = stratified(labels, size, generator_of("t", size))
        assert len(chosen) == size
        counts = labels[chosen].bincount(minlength=3)
        assert bool(((counts - torch.tensor([0.7, 0.2, 0.1]) * size).abs() < 1).all())


def tracks(classes=4, per_class=6, frames=5):
    n = classes * per_class * frames
    return ImageSet(
        images=torch.zeros(n, 3, 1, 1, dtype=torch.uint8),
        labels=torch.arange(n) // (per_class * frames),
        groups=torch.arange(n) // frames,
    )


def test_subsets_of_tracks_take_whole_tracks():
    part = tracks()
    small = part.take(subset(part, 40, generator_of("t")))
    assert sorted(small.groups.bincount().tolist())[-8:] == [5] * 8
    assert set(small.groups.bincount().tolist()) == {0, 5}
    assert small.labels.bincount().tolist() == [10] * 4


def test_carving_never_parts_a_track():
    train, test = carve(tracks())
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert len(train) + len(test) == 120


def test_seeds_depend_on_every_axis_and_nothing_else():
    assert seed_of("a", 1) == seed_of("a", 1)
    assert (
        len({seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a1"), seed_of("a")}) == 5
    )
    assert 0 <= seed_of("x") < 2**63


# --- the real sets ---

COUNTS = {
    "cifar10": (50_000, 10_000, 10),
    "gtsrb": (39_209, 12_630, 43),
    "belgiumtsc": (4_575, 2_520, 62),
    "lfw32": (4_189, 1_796, 423),
    "tiny-imagenet32": (7_000, 3_000, 200),
}


@pytest.mark.parametrize("name", ["belgiumtsc", "lfw32", "tiny-imagenet32"])
def test_real_sets_load(tmp_path, real_data, name):
    data = library(tmp_path, real_data).load(name)
    assert (len(data.train), len(data.test), data.num_classes) == COUNTS[name]
    assert int(data.train.labels.max()) < data.num_classes


def test_real_gtsrb_has_its_tracks_and_classes(tmp_path, real_data):
    data = library(tmp_path, real_data).load("gtsrb")
    assert (len(data.train), len(data.test), data.num_classes) == COUNTS["gtsrb"]
    assert len(data.train.groups.unique()) == 1307
    assert data.train.labels.bincount().tolist()[:4] == [210, 2220, 2250, 1410]
    assert DATASETS["gtsrb"].ood == "belgiumtsc"


def test_the_manifest_of_a_root_is_json_without_paths(root):
    for path in root.glob("zoo/**/*.json"):
        text = path.read_text()
        assert json.loads(text)
        assert str(root.parent) not in text
