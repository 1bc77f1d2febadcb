"""Speed, as ratios against what people write, both sides measured here, interleaved, on one thread.

Run alone for figures: ``pytest tests/benchmarks --benchmark-only -rP``.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from tests.benchmarks.plain import PilImages, plain_layers, plain_training
from zoo.allocator import keep_freed_memory
from zoo.augment import Augmentation
from zoo.models import ArchSpec, build_model
from zoo.train import Recipe, has_fast_bfloat16, train

CPU_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def bar(amx: float, avx512_bf16: float, otherwise: float) -> float:
    """The bar for this processor: tile units, bfloat16 products without them, or neither."""
    if not has_fast_bfloat16("cpu"):
        return otherwise
    return amx if "amx_bf16" in CPU_FLAGS else avx512_bf16


def data(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def model_of(arch):
    return build_model(ArchSpec(name=arch, num_classes=10), torch.Generator().manual_seed(0))


def seconds(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def compare(benchmark, ours, plain, rounds):
    """Ratio of the best times, measured in turns; ``ours`` is what pytest-benchmark reports."""
    ours()  # warm up both
    plain()
    slow = []
    benchmark.pedantic(ours, setup=lambda: slow.append(seconds(plain)), rounds=rounds, iterations=1)
    if benchmark.disabled:
        pytest.skip("benchmarks are switched off")
    ratio = min(slow) / benchmark.stats.stats.min
    benchmark.extra_info.update(ratio=round(ratio, 2), plain_seconds=round(min(slow), 4))
    print(f"{benchmark.name}: {ratio:.2f}x, {benchmark.stats.stats.min:.3f} s vs {min(slow):.3f} s")
    return ratio


def ratio_of(ours, plain, rounds):
    """Ratio of the best times, measured in turns after a warm-up."""
    ours()
    plain()
    fast, slow = [], []
    for _ in range(rounds):
        slow.append(seconds(plain))
        fast.append(seconds(ours))
    return min(slow) / min(fast)


@pytest.mark.parametrize(
    ("arch", "count", "rounds", "needed"),
    [("small_vgg", 512, 4, bar(3.0, 2.0, 1.1)), ("resnet18", 128, 2, bar(2.8, 1.7, 0.8))],
)
def test_training_against_a_plain_loop(benchmark, arch, count, rounds, needed):
    images, labels = data(count)
    keep_freed_memory()
    fast, slow = model_of(arch), plain_layers(model_of(arch))
    loader = DataLoader(PilImages(images, labels), batch_size=128, shuffle=True)
    augmentation = Augmentation()

    def ours():
        generator = torch.Generator().manual_seed(0)
        recipe = Recipe(epochs=1, batch_size=128, lr=0.01)
        train(fast, images, labels, recipe, generator=generator, augmentation=augmentation)

    assert compare(benchmark, ours, lambda: plain_training(slow, loader), rounds) >= needed


def test_batched_augmentation_against_transforms_per_image(benchmark):
    images, labels = data(1024)
    slow = PilImages(images, labels)
    slow.transform = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    )
    augmentation, generator = Augmentation(), torch.Generator().manual_seed(0)

    def ours():
        for batch in images.split(128):
            augmentation(batch, generator)

    def plain():
        for i in range(len(slow)):
            np.asarray(slow[i][0])

    assert compare(benchmark, ours, plain, rounds=5) >= 8


def test_overhead_of_the_harness_per_cell(benchmark, root, toy_data, toy_profile):
    """Everything but the defense's own work and the evaluation: at most 0.25 s."""
    from bench.config import load_profile
    from bench.harness import Harness, Settings
    from bench.plan import plan_cells
    from bench.registry import Registry
    from bench.selection import Selection, select
    from zoo.data import Library
    from zoo.evaluate import evaluate

    library = Library(data=toy_data, cache=root / "cache")
    pick = Selection(defenses=("ft[steps=1]",), budgets=("20",))
    profile = select(load_profile(str(toy_profile)), pick, library)
    settings = Settings(
        root=root, profile=profile, library=library, device="cpu", jobs=1, executor="serial"
    )
    cell = plan_cells(profile, Registry(), root, library)[0][-1]
    own = []
    with Harness(settings) as harness:
        harness.run_cell(cell)  # starts the server
        judge = harness._judges.of(cell.victim)
        model = cell.victim.model()

        def run():
            record = harness.run_cell(cell)
            assert record.cost is not None
            own.append(record.cost.seconds)

        benchmark.pedantic(run, rounds=8, iterations=1)
        judging = min(seconds(lambda: evaluate(model, judge)) for _ in range(3))
    if benchmark.disabled:
        pytest.skip("benchmarks are switched off")
    overhead = benchmark.stats.stats.median - sorted(own)[len(own) // 2] - judging
    benchmark.extra_info["overhead_seconds"] = round(overhead, 3)
    print(f"harness overhead per cell: {overhead:.3f} s")
    assert overhead <= 0.25
