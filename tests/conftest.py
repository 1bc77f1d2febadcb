"""Shared fixtures: small data sets on disk, and a root with built victims."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

REAL_DATA = Path(os.environ.get("BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")

TOY_PROFILE = """\
name = "toy"
description = "for the tests"
seeds = [0]
budgets = ["0", "1", "20", "unlabeled", "ood"]
defenses = ["identity", "scramble", "clp", "ft"]

[limits]
seconds = 60
memory_gib = 4

[[grid]]
dataset = "cifar10"
arch = "small_vgg"
width = 0.125
attacks = ["badnets"]

[grid.training]
epochs = 1
batch_size = 32

[params.ft]
steps = 2

# No channel of a network that has hardly learnt stands out by 3.
[params.clp]
u = 1.0
"""


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests share two cores with nobody they know of, and results must not depend on threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.delenv("BENCH_ROOT", raising=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; skips where they are not."""
    if not (REAL_DATA / "gtsrb" / "test.parquet").exists():
        pytest.skip(f"the real data sets are not at {REAL_DATA} (set BENCH_DATA)")
    return REAL_DATA


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: list[int], paths: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(i), "path": p} for i, p in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}), path
    )


def coloured(count: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Noise around one colour per class: learnt in a second."""
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(count)]
    hues = np.random.default_rng(0).integers(40, 216, (classes, 1, 1, 3))
    noise = rng.integers(-30, 31, (count, 32, 32, 3))
    return np.clip(hues[labels] + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """A data folder whose ``cifar10`` and ``tiny-imagenet32`` are small and synthetic."""
    folder = tmp_path_factory.mktemp("data")
    for name, part, count, seed in (
        ("cifar10", "train", 300, 1),
        ("cifar10", "test", 200, 2),
        ("tiny-imagenet32", "train", 60, 3),
    ):
        images, labels = coloured(count, 10, seed)
        names = [f"{i}.png" for i in range(count)]
        write_parquet(folder / name / f"{part}.parquet", images, labels, names)
    return folder


@pytest.fixture(scope="session")
def toy_profile(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "toy.toml"
    path.write_text(TOY_PROFILE)
    return path


@pytest.fixture(scope="session")
def built_root(tmp_path_factory, toy_data, toy_profile) -> Path:
    """A root whose victim and twin are trained for one epoch and admitted by hand."""
    from typer.testing import CliRunner

    from bench.cli import app

    root = tmp_path_factory.mktemp("root")
    arguments = ["build-zoo", "-p", str(toy_profile), "--root", str(root), "--data", str(toy_data)]
    result = CliRunner().invoke(app, [*arguments, "-j", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for path in root.glob("zoo/**/victim.json"):
        meta = json.loads(path.read_text())
        if meta["status"] == "rejected":
            path.write_text(json.dumps({**meta, "status": "admitted", "reasons": []}))
    return root


@pytest.fixture
def root(built_root, tmp_path) -> Path:
    """A private copy of the built root."""
    import shutil

    copy = tmp_path / "root"
    shutil.copytree(built_root, copy)
    return copy
