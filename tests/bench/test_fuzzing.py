"""What could break: a file that somebody has tampered with ends a run without a word, or passes."""

import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from bench import base_sets, handback, records, sweeps
from bench.config import BUILT_IN, Profile, load_profile
from bench.detections import contact_strip
from bench.launcher import Exit
from leaderboard.victims import read_victim
from tests.bench.test_records import make
from tests.conftest import TOY_PROFILE, png
from tests.fuzzing import fuzzed, tampered
from tests.leaderboard.synthetic import victim_json
from zoo.errors import UserError
from zoo.models import ArchSpec, shapes_of
from zoo.recipes import VictimRecipe
from zoo.sources import MAX_CLASSES, open_image, read_parquet
from zoo.store import Zoo
from zoo.tensors import copy_tensors, read_tensors
from zoo.train import Recipe

SPEC = ArchSpec(name="small_vgg", num_classes=3, width=0.03)
TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "count": torch.tensor(7),
}
PIXELS = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
ENDED = Exit(rc=0, timed_out=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- profiles -------------------------------------------------------------------------------------

PROFILES = [TOY_PROFILE.encode()]


@fuzzed
@given(tampered(*PROFILES))
def test_profiles(folder, content):
    path = put(folder / "p.toml", content)
    with contextlib.suppress(UserError):
        profile = load_profile(str(path))
        assert isinstance(profile, Profile)
        assert all(math.isfinite(grid.width) for grid in profile.grid)


def test_what_is_not_tampered_with_is_read(folder):
    assert load_profile(str(put(folder / "p.toml", PROFILES[0]))).name == "toy"
    assert all(load_profile(name) for name in BUILT_IN)


# -- records, and what else is JSON ---------------------------------------------------------------

FINDING = {"statistic": "L1", "values": [1.0], "index": [2.0], "threshold": 2.0, "flagged": [0]}
RECORDS = [
    records.text_of(make(curve=[{"step": 1, "loss": 0.5}], finding=FINDING)).encode(),
    records.text_of(make(error={"type": "E", "message": "m", "traceback": ""})).encode(),
]


def sealed(content):
    """The same record with the digest that it should have, as a forger would write it."""
    with contextlib.suppress(ValueError, RecursionError):
        payload = json.loads(content)
        if isinstance(payload, dict):
            payload.pop("payload_sha256", None)
            digest = records.digest(payload)
            return json.dumps({**payload, "payload_sha256": digest}, indent=1).encode()
    return content


def check_record(folder, content):
    path = put(folder / "records" / "ibau" / "ab" / "x.json", content)
    with contextlib.suppress(records.RecordError):
        record = records.read(path)
        assert records.path_of(folder, record).resolve().is_relative_to(folder / "records")
        assert json.loads(records.text_of(record))["key"] == record.key
    found, problems = records.read_all(folder)
    assert len(found) + len(problems) == 1


@fuzzed
@given(tampered(*RECORDS))
def test_records(folder, content):
    check_record(folder, content)


@fuzzed
@given(tampered(*RECORDS).map(sealed))
def test_forged_records(folder, content):
    check_record(folder, content)


SWEEPS = [
    json.dumps(
        dataclasses.asdict(
            sweeps.Sweep(defense="ft", label="ft", param="lr", values=(0.1, 1), fixed={"n": 3})
        )
    ).encode()
]


@fuzzed
@given(tampered(*SWEEPS))
def test_sweeps(folder, content):
    put(folder / "sweeps" / "x.json", content)
    found, problems = sweeps.read_all(folder)
    assert len(found) + len(problems) == 1
    for sweep in found:
        assert "/" not in sweep.name
        assert set(sweeps.in_order(sweep.values)) == set(sweep.values)


@fuzzed
@given(st.data())
def test_victims_of_others(folder, data):
    original = victim_json(folder / "original", "sig").read_bytes()
    path = put(folder / "zoo" / "v" / "victim.json", data.draw(tampered(original)))
    with contextlib.suppress(ValueError):
        victim = read_victim(path)
        assert math.isfinite(victim.metrics.acc + victim.setting.poison_rate)


RECIPE = VictimRecipe(
    dataset="signs", arch="small_vgg", width=0.03, seed=0, training=Recipe(epochs=1)
)
META = {
    "status": "twin",
    "reasons": [],
    "target": None,
    "data_fingerprint": "f",
    "poisoned_images": 0,
    "metrics": {"acc": 0.5, "images": 10, "strengths": {}},
    "twin_metrics": None,
    "training": {"images": 10, "seconds": 1.5},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A zoo with one twin, and its metadata."""
    from zoo.models import build_model

    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.save(RECIPE, build_model(SPEC), None, META)
    return zoo, (zoo.folder(RECIPE) / "victim.json").read_bytes()


@fuzzed
@given(st.data())
def test_metadata_of_the_zoo(stored, data):
    zoo, original = stored
    put(zoo.folder(RECIPE) / "victim.json", data.draw(tampered(original)))
    with contextlib.suppress(UserError):
        found = zoo.find(RECIPE)
        assert found is None or found.model().spec == found.spec


# -- what a child leaves --------------------------------------------------------------------------

COST = {"seconds": 1.0, "images_forward": 1, "images_backward": 1, "peak_rss": 1, "peak_gpu": 0}
RESULTS = [
    json.dumps(
        {
            "status": "ok",
            "error": None,
            "specs": [SPEC.to_dict()],
            "finding": FINDING,
            "cost": COST,
            "curve": [{"step": 0, "loss": None}],
            "data_touched": {"granted_images": 3, "granted_labels": "true", "read_images": True},
        }
    ).encode(),
    b'{"status": "timeout", "error": {"type": "E", "message": "m", "traceback": "t"}}',
]


@fuzzed
@given(tampered(*RESULTS))
def test_accounts_of_children(folder, content):
    result = handback.read_result(put(folder / "result.json", content), ENDED, 1.0)
    assert result["status"] in records.STATUSES
    json.dumps(result, allow_nan=False)
    if result["status"] == "ok":
        with contextlib.suppress(handback.HandbackError):
            assert handback.specs_of(result, SPEC, "nothing") == [SPEC]


PICTURES = [
    save({"triggers": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}),
    save({"triggers": torch.zeros(11, 1, 2, 2, dtype=torch.uint8)}),
]


@fuzzed
@given(tampered(*PICTURES))
def test_pictures_of_children(folder, content):
    picture = contact_strip(put(folder / "triggers.safetensors", content))
    assert not picture or Image.open(io.BytesIO(picture)).size[0] <= 400_000


BASES = [
    save({"images": torch.zeros(3, 3, 4, 4, dtype=torch.uint8), "labels": torch.arange(3)}),
]


@fuzzed
@given(tampered(*BASES))
def test_base_sets_of_children(folder, content):
    path = put(folder / "base-set.safetensors", content)
    with contextlib.suppress(UserError):
        made = base_sets.load(path, (3, 4, 4), 3)
        assert made["images"].shape == (len(made["labels"]), 3, 4, 4)
        assert 0 <= int(made["labels"].min()) <= int(made["labels"].max()) < 3


@fuzzed
@given(tampered(save(TENSORS), save({k: torch.zeros_like(v) for k, v in TENSORS.items()})))
def test_tensors(folder, content):
    path = put(folder / "x.safetensors", content)
    with contextlib.suppress(UserError):
        assert all(v.numel() <= len(content) for v in read_tensors(path).values())
    with contextlib.suppress(UserError):
        found = read_tensors(path, TENSORS)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in TENSORS.items()}
    with contextlib.suppress(ValueError, OSError):
        found = copy_tensors(path, TENSORS)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in TENSORS.items()}


def test_a_models_own_tensors_pass(folder):
    from zoo.models import build_model

    path = put(folder / "m.safetensors", save(dict(build_model(SPEC).state_dict())))
    assert copy_tensors(path, shapes_of(SPEC)).keys() == read_tensors(path, shapes_of(SPEC)).keys()


# -- images ---------------------------------------------------------------------------------------


def parquet(compression):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(PIXELS[:4, :4]), "path": f"{n}_0.png"} for n in range(3)]
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array([0, 1, 2], pa.int64())})
    names = {"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


PARQUETS = [parquet("none"), parquet("snappy"), parquet("zstd")]


@fuzzed
@given(tampered(*PARQUETS))
def test_parquet(folder, content):
    path = put(folder / "train.parquet", content)
    with contextlib.suppress(UserError):
        found = read_parquet([path], tracks=True)
        assert found.images.shape == (len(found.labels), 3, 32, 32)
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < MAX_CLASSES


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(kind) for kind in ("PNG", "JPEG", "PPM", "BMP", "WEBP", "GIF", "TIFF", "EPS")]


@fuzzed
@given(tampered(*IMAGES))
def test_images(folder, content):
    path = put(folder / "i.png", content)
    with contextlib.suppress(UserError):
        assert open_image(path, "i").shape == (32, 32, 3)


def test_all_that_is_tampered_with_is_read_while_it_is_whole(folder, stored):
    path = put(folder / "whole.parquet", PARQUETS[1])
    assert len(read_parquet([path], tracks=False)) == 3
    for content in RECORDS:
        assert records.read(put(folder / "whole.json", content))
    assert sweeps.read(put(folder / "whole.json", SWEEPS[0])).values == (0.1, 1)
    result = handback.read_result(put(folder / "whole.json", RESULTS[0]), ENDED, 1.0)
    assert result["status"] == "ok"
    assert handback.specs_of(result, SPEC, "nothing") == [SPEC]
    assert contact_strip(put(folder / "whole.safetensors", PICTURES[0]))
    assert base_sets.load(put(folder / "whole.safetensors", BASES[0]), (3, 4, 4), 3)
    assert read_victim(victim_json(folder / "original", "sig")).metrics.images > 0
    zoo, original = stored
    put(zoo.folder(RECIPE) / "victim.json", original)
    found = zoo.find(RECIPE)
    assert found is not None
    assert found.model().spec == SPEC
