"""kill -9 of `bench build-zoo` at random moments: in the end the zoo of one that nobody disturbed."""

import contextlib
import json
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.torch import load_file

from tests.bench.driver import Drivers
from zoo.checkpoint import CHECKPOINT
from zoo.files import file_digest

KILLS = 6  # of one run of the suite; thirty take four to eight minutes
LANES = 2  # roots at a time: most of the time goes into starting servers
EPOCHS = 10
# A patch, covers that are redrawn in every epoch, adversarial images from a robust surrogate, and
# a head that is trained on from the clean twin.
ATTACKS = [
    "badnets",
    "wanet",
    "label_consistent[steps=2]",
    f"trojaning[steps=2, epochs={EPOCHS}, neurons=2]",
]
PROFILE = f"""\
name = "kill"
description = "every kind of step"
seeds = [0]
budgets = ["0"]
defenses = ["identity"]

[[grid]]
dataset = "cifar10"
arch = "small_vgg"
width = 0.125
train_images = 100
attacks = {json.dumps(ATTACKS)}

[grid.training]
epochs = {EPOCHS}
batch_size = 50

[grid.robust]
epochs = 4
steps = 1
"""


@pytest.fixture
def command(tmp_path, toy_data):
    profile = tmp_path / "kill.toml"
    profile.write_text(PROFILE)
    return lambda root: [
        *("build-zoo", "-p", profile, "--data", toy_data),
        *("-j", "2", "--device", "cpu", "--root", root),
    ]


def folders(root):
    """Every folder of a victim, a surrogate or a material, finished or not."""
    return sorted(p for p in [*root.glob("zoo/*/*/*"), *root.glob("assets/*/*/*/*")] if p.is_dir())


def contents(root):
    """The digests of what is finished: weights, triggers, surrogates, materials; all readable."""
    found = {}
    for folder in folders(root):
        for meta_path in (folder / "victim.json", folder / "asset.json"):
            if not meta_path.exists():
                continue
            meta = json.loads(meta_path.read_text())
            for path in folder.glob("[!.c]*.safetensors"):
                assert load_file(path)
                found[str(path.relative_to(root))] = file_digest(path)
                assert meta[f"{path.stem}_sha256"] == file_digest(path)
    return found


def unfinished(root):
    """Trainings that can go on; their checkpoints are whole."""
    paths = [
        folder / CHECKPOINT
        for folder in folders(root)
        if not list(folder.glob("*.json")) and (folder / CHECKPOINT).exists()
    ]
    return sum("train.position" in load_file(path) for path in paths)


def went_on(root):
    """How many trainings went on from a checkpoint: their last process saw fewer images."""
    trainings = [json.loads(p.read_text())["training"] for p in root.glob("zoo/*/*/*/victim.json")]
    return sum(
        round(t["images_per_second"] * t["seconds"] / t["images"]) < EPOCHS for t in trainings
    )


def touched(root):
    """Changes whenever a build gets on."""
    stamps = {}
    for path in [p for folder in folders(root) for p in [folder, *folder.iterdir()]]:
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            stamps[path] = path.stat().st_mtime_ns
    return stamps


class Lane:
    """Builds in a root of its own, killed again and again."""

    def __init__(self, folder, command, rng):
        self.root, self.command, self.rng = folder / "root", command(folder / "root"), rng
        self.driver = Drivers(folder)
        self.resumable = self.resumed = 0

    def build(self):
        """Undisturbed; returns the seconds until there is something to see, and from then on."""
        begun = time.monotonic()
        self.driver.start(*self.command)
        code, ready = self._seen()
        code = self.driver.wait(300) if code is None else code
        assert code == 0, (self.driver.folder / "driver.log").read_text()
        return ready, time.monotonic() - begun - ready

    def disturb(self, kills, ready, work, expected):
        """Kills so often, mostly while things are built, and begins again when all is done."""
        while kills:
            self.driver.start(*self.command)
            if self.rng.random() < 0.1:  # before there is anything to see
                code = self.driver.wait(self.rng.uniform(0, ready))
            else:
                code, _ = self._seen()
            if code is None:
                code = self.driver.wait(self.rng.uniform(0, 0.5 * work))
            if code is None and self.driver.kill() == -signal.SIGKILL:
                kills -= 1
                assert contents(self.root).items() <= expected.items()  # right from the first
                self.resumable += unfinished(self.root) > 0
            elif code is not None:
                assert (code, contents(self.root)) == (0, expected)
                self.resumed += went_on(self.root)
                shutil.rmtree(self.root)

    def _seen(self):
        """Waits until the build gets on; the exit code if it ends first, and the seconds."""
        begun, before = time.monotonic(), touched(self.root)
        while touched(self.root) == before:
            if (code := self.driver.wait(0.02)) is not None:
                return code, 0
        return None, time.monotonic() - begun


def test_kills_at_random_moments(command, tmp_path):
    lanes = []
    for name in ("undisturbed", *map(str, range(LANES))):
        (tmp_path / name).mkdir()
        lanes.append(Lane(tmp_path / name, command, random.Random(name)))
    undisturbed, *lanes = lanes
    with undisturbed.driver:
        ready, work = undisturbed.build()
    expected = contents(undisturbed.root)
    assert len(expected) == 5 + 4 + 2  # weights, triggers, a surrogate and a material

    def disturb(lane):
        with lane.driver:
            lane.disturb(KILLS // LANES, ready, work, expected)
            lane.build()
        lane.resumed += went_on(lane.root)

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(disturb, lanes))
    resumable, resumed = sum(x.resumable for x in lanes), sum(x.resumed for x in lanes)
    print(f"{ready:.1f} s to start, {work:.1f} s to build; {resumable} of {KILLS} kills left a "
          f"checkpoint, {resumed} trainings went on from one")  # fmt: skip
    # How many depends on the load of the machine. tests/zoo/test_checkpoint.py shows that they do.
    for lane in lanes:
        compare(lane.root, undisturbed.root, expected)


def compare(root, undisturbed, expected):
    """The same files with the same contents, and nothing left over."""
    assert contents(root) == expected
    for here, there in zip(folders(root), folders(undisturbed), strict=True):
        assert here.relative_to(root) == there.relative_to(undisturbed)
        visible = {path.name for path in there.iterdir()}
        # A kill between write and rename leaves a hidden text file of a line or two, no weights.
        hidden = {path.name for path in here.iterdir()} - visible
        assert all(name.startswith((".train.jsonl.", ".victim.json.")) for name in hidden)
        assert CHECKPOINT not in visible
        if (log := here / "train.jsonl").exists():
            lines = log.read_text()
            assert lines == (there / "train.jsonl").read_text()  # losses to the last digit
            assert [json.loads(x)["epoch"] for x in lines.splitlines()] == list(range(EPOCHS))
