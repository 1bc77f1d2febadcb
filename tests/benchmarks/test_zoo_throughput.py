"""Victims per hour: `build-zoo` over worker slots against a plain loop, one victim after another.

The same data, networks, steps and augmentation; ours includes poisoning, checkpoints, storing and
the gate with its evaluations. Run alone for figures:
``pytest tests/benchmarks/test_zoo_throughput.py --benchmark-only -rP``.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import DataLoader

from bench.building import build_zoo, zoo_state
from bench.config import load_profile
from bench.environment import cores
from bench.harness import Settings, Watcher
from tests.benchmarks.plain import PilImages, plain_layers, plain_training
from tests.benchmarks.test_speed import bar, model_of, seconds
from tests.conftest import coloured, write_parquet
from zoo.data import Library

EPOCHS = 2
PROFILE = """\
name = "throughput"
description = "seeds of one network"
seeds = {seeds}
budgets = ["0"]
defenses = ["identity"]

[[grid]]
dataset = "cifar10"
arch = "{arch}"
attacks = ["badnets"]

[grid.training]
epochs = {epochs}
batch_size = 128
"""


class Zoo:
    """Builds the same few twins and victims as often as wanted, each time in a new root.

    Its server of child processes stays warm, as it does in the hours of a real build.
    """

    def __init__(self, folder, *, images, arch, seeds, device, jobs):
        for part, count, seed in (("train", images, 1), ("test", 100, 2)):
            pictures, labels = coloured(count, 10, seed)
            names = [f"{i}.png" for i in range(count)]
            write_parquet(folder / "data" / "cifar10" / f"{part}.parquet", pictures, labels, names)
        profile = folder / "throughput.toml"
        profile.write_text(PROFILE.format(arch=arch, seeds=json.dumps(seeds), epochs=EPOCHS))
        self.folder, self.arch, self.device, self.rounds = folder, arch, device, 0
        self.library = Library(data=folder / "data", cache=folder / "cache")
        self.profile, self.jobs = load_profile(str(profile)), jobs
        self.trainings = 2 * len(seeds)  # a twin and a victim each

    def build(self):
        self.rounds += 1
        settings = Settings(
            root=self.folder / str(self.rounds),
            profile=self.profile,
            library=self.library,
            device=self.device,
            jobs=self.jobs,
        )
        state = zoo_state(settings)
        assert len(state.steps) == self.trainings
        assert build_zoo(settings, state, Watcher()) == []

    def plain(self, trainings, workers):
        """A person's script: all cores, one training after another."""
        train = self.library.load("cifar10").train
        torch.set_num_threads(cores())
        try:
            for _ in range(trainings):
                loader = DataLoader(
                    PilImages(train.images, train.labels),
                    batch_size=128,
                    shuffle=True,
                    num_workers=workers,
                    persistent_workers=True,
                )
                plain_training(plain_layers(model_of(self.arch)), loader, EPOCHS, self.device)
        finally:
            torch.set_num_threads(1)


def report(benchmark, zoo, slow):
    """Ratio of victims per hour; ``slow`` is what the plain loop needs for a training."""
    if benchmark.disabled:
        pytest.skip("benchmarks are switched off")
    fast = benchmark.stats.stats.min / zoo.trainings
    ratio = slow / fast
    rates = {"victims_per_hour": round(3600 / fast), "plain_per_hour": round(3600 / slow)}
    benchmark.extra_info.update(ratio=round(ratio, 2), **rates)
    print(f"{benchmark.name}: {ratio:.2f}x, {3600 / fast:.0f} against {3600 / slow:.0f} an hour")
    return ratio


@pytest.mark.skipif(cores() < 2, reason="worker slots need more than one core")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # the DataLoader's
def test_worker_slots_against_one_victim_after_another(benchmark, tmp_path):
    zoo = Zoo(tmp_path, images=256, arch="small_vgg", seeds=[0, 1], device="cpu", jobs=2)
    slow = []
    zoo.build()  # starts the server
    benchmark.pedantic(
        zoo.build,
        setup=lambda: slow.append(seconds(lambda: zoo.plain(2, cores())) / 2),
        rounds=2,
        iterations=1,
    )
    assert report(benchmark, zoo, min(slow)) >= bar(1.5, 1.5, 1.3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_fourteen_seeds_share_a_card(benchmark, tmp_path):
    """The seeds of the profile `paper`, victims and twins, as four processes on one card."""
    seeds = list(range(14))
    zoo = Zoo(tmp_path, images=20_000, arch="resnet18", seeds=seeds, device="cuda", jobs=4)
    benchmark.pedantic(zoo.build, rounds=1, iterations=1)
    slow = min(seconds(lambda: zoo.plain(1, cores())) for _ in range(2))
    assert report(benchmark, zoo, slow) >= 3
