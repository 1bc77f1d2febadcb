"""Building the zoo: surrogates, twins, priors, materials and victims, each in a child of its own.

Steps are listed so that whatever one needs stands before it. A worker slot takes the next step and
waits for what another slot is still building; so nobody waits for something that nobody has begun.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bench.environment import cores
from bench.executors import run_all
from bench.harness import Settings, Watcher
from bench.launcher import Exit, Launcher, Runner
from bench.plan import plan_victims, twins_of
from bench.priors import describe_prior, plan_priors
from zoo.asset_recipes import AssetRecipe, MaterialRecipe, PriorRecipe
from zoo.assets import AssetStore
from zoo.build import check, training_of
from zoo.checkpoint import CHECKPOINT
from zoo.errors import StorageError, UserError
from zoo.files import parse_json, read_json, read_tail
from zoo.recipes import VictimRecipe, target_class
from zoo.sets import facts_of
from zoo.store import Stored, Zoo

Task = Literal["build", "judge"]
_A_WEEK: Final = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to build, and the hashes of the recipes that must be built before."""

    recipe: VictimRecipe | AssetRecipe
    needs: tuple[str, ...] = ()
    trained: bool = False  # a victim that only the gate has not seen; it needs its twin
    judge: VictimRecipe | None = None  # the clean twin that a prior is measured with

    @property
    def work(self) -> str:
        """What there is to do, in a few words."""
        if self.trained:
            return "gate"
        if isinstance(self.recipe, VictimRecipe):
            return _epochs(training_of(self.recipe).epochs)
        if isinstance(self.recipe, MaterialRecipe):
            return f"optimised on the {self.recipe.surrogate.kind} surrogate"
        if isinstance(self.recipe, PriorRecipe):
            return f"{self.recipe.training.steps} steps of a WGAN-GP"
        return _epochs((self.recipe.robust or self.recipe.training).epochs)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class ZooState:
    """What a profile's zoo has and lacks."""

    built: list[Stored]
    steps: list[Step]  # in an order in which they can be done

    @property
    def to_judge(self) -> int:
        """Victims that only the gate has not seen."""
        return sum(step.trained for step in self.steps)

    @property
    def to_build(self) -> list[VictimRecipe | AssetRecipe]:
        """What must still be trained or optimised."""
        return [step.recipe for step in self.steps if not step.trained]

    @property
    def planned(self) -> int:
        """Victims and twins in all, built or not."""
        return len(self.built) + sum(isinstance(s.recipe, VictimRecipe) for s in self.steps)

    def plan(self) -> list[dict[str, Any]]:
        """The steps in order, as JSON values: what, how much work, after which others."""
        names = {step.recipe.hash(): step.recipe.label for step in self.steps}
        return [
            {
                "label": step.recipe.label,
                "work": step.work,
                "after": [names[name] for name in step.needs if name in names],
            }
            for step in self.steps
        ]


def zoo_state(settings: Settings) -> ZooState:
    """Compares a profile's victims, twins and their assets with what is stored.

    Raises:
        UserError: something stored is damaged, or the data that decides a target is missing.
    """
    zoo, assets = Zoo(settings.root), AssetStore(settings.root)
    victims = plan_victims(settings.profile)
    materials_of = _material_finder(settings)
    built: list[Stored] = []
    steps: list[Step] = []
    materials: dict[str, MaterialRecipe] = {}
    wanted_victims = {r.hash(): r for r, _ in [*twins_of(victims), *victims]}
    for recipe in wanted_victims.values():
        stored = zoo.find(recipe)
        if stored is not None and stored.meta["metrics"] is not None:
            built.append(stored)
        elif stored is not None:
            steps.append(Step(recipe=recipe, needs=_twin_of(recipe), trained=True))
        else:
            wanted = {m.hash(): m for m in materials_of(recipe)}
            materials |= {h: m for h, m in wanted.items() if assets.find(m) is None}
            starts_from_twin = recipe.attack is not None and recipe.attack.tuning is not None
            needs = (*wanted, *(_twin_of(recipe) if starts_from_twin else ()))
            steps.append(Step(recipe=recipe, needs=needs))
    surrogates = {m.surrogate.hash(): m.surrogate for m in materials.values()}
    first = [Step(recipe=s) for s in surrogates.values() if assets.find(s) is None]
    crafted = [Step(recipe=m, needs=(m.surrogate.hash(),)) for m in materials.values()]
    priors = [
        Step(recipe=prior, needs=(twin.hash(),), judge=twin)
        for prior, twin in plan_priors(settings.profile, victims)
        if assets.find(prior) is None
    ]
    # Surrogates begin the longest chains; while they are trained, plain victims fill the slots.
    plain = [step for step in steps if not step.needs]
    waiting = [step for step in steps if step.needs]
    return ZooState(built=built, steps=[*first, *plain, *priors, *crafted, *waiting])


def _twin_of(recipe: VictimRecipe) -> tuple[str, ...]:
    """The hash of a victim's twin; a twin has none but itself."""
    return () if recipe.attack is None else (recipe.twin().hash(),)


def _material_finder(settings: Settings) -> Callable[[VictimRecipe], list[MaterialRecipe]]:
    """Which materials a victim needs; loads data only for attacks that need any."""
    known: dict[str, tuple[Any, int]] = {}

    def find(recipe: VictimRecipe) -> list[MaterialRecipe]:
        if recipe.attack is None or not recipe.attack.crafted:
            return []
        if recipe.dataset not in known:
            data = settings.library.load(recipe.dataset)
            known[recipe.dataset] = (data.train.labels, data.num_classes)
        labels, num_classes = known[recipe.dataset]
        return recipe.materials(target_class(recipe, labels, num_classes), num_classes)

    return find


def check_data(settings: Settings) -> None:
    """Decodes every data set once, and its out-of-distribution set, before anything is trained.

    Every attack is checked on it, too.

    Raises:
        UserError: a set is missing or damaged, or an attack cannot be made on it.
    """
    victims = plan_victims(settings.profile)
    for name in sorted({recipe.dataset for recipe, _ in victims}):
        data = settings.library.load(name)
        own = [(recipe, grid) for recipe, grid in victims if recipe.dataset == name]
        for recipe, _ in own:
            check(recipe, data)
        for ood in {grid.ood or facts_of(name).ood for _, grid in own}:
            settings.library.load_unlabelled(ood)  # part of every split


def build_zoo(settings: Settings, state: ZooState, watcher: Watcher) -> list[str]:
    """Builds and judges what is missing; returns one message per failure.

    Raises:
        StorageError: a full disk, which no other victim could survive either.
        UserError: the workers of a cluster do not see the root.
    """
    # Threads decide the last bits of the weights, so they must not follow from what is left: an
    # interrupted build would end otherwise than an undisturbed one.
    jobs = max(1, min(settings.jobs, state.planned))
    with _launcher_of(settings) as (launcher, slots):
        slots, threads = (slots, 1) if slots else (jobs, max(1, cores() // jobs))
        return _Building(settings, state, watcher, launcher, slots, threads).run()


@contextmanager
def _launcher_of(settings: Settings) -> Iterator[tuple[Runner, int]]:
    """What runs the children, and how many at a time where a cluster decides it (else 0)."""
    if settings.executor != "dask":
        with closing(Launcher("bench.builder:run", fork=settings.fork)) as launcher:
            yield launcher, 0
        return
    from bench.cluster import RemoteLauncher, connect  # needs the extra `dask`

    with connect(settings) as cluster:
        if not cluster.shared:
            raise UserError(
                "the workers do not see the root, so they cannot build what is missing in its zoo. "
                "Build it here first: bench build-zoo, with the same profile and no --executor"
            )
        with closing(RemoteLauncher(cluster, "bench.builder:run")) as remote:
            yield remote, cluster.slots()


def tidy(root: Path) -> None:
    """Removes what a kill left in the folders of finished things: checkpoints, unnamed files."""
    done = [*root.glob("zoo/*/*/*/victim.json"), *root.glob("assets/*/*/*/*/asset.json")]
    for folder in (path.parent for path in done):
        for leftover in [folder / CHECKPOINT, *folder.glob(".*.safetensors.*")]:
            leftover.unlink(missing_ok=True)


class _Building:
    """One pass over the steps."""

    def __init__(
        self,
        settings: Settings,
        state: ZooState,
        watcher: Watcher,
        launcher: Runner,
        slots: int,
        threads: int,
    ) -> None:
        self._settings, self._steps = settings, state.steps
        self._watcher, self._launcher = watcher, launcher
        self._zoo = Zoo(settings.root)
        self._slots, self._threads = slots, threads
        self._ended = {step.recipe.hash(): threading.Event() for step in state.steps}
        self._failed: set[str] = set()

    def run(self) -> list[str]:
        outcomes = run_all(self._one, self._steps, self._settings.executor, self._slots)
        return [message for message in outcomes if message]

    def _one(self, step: Step) -> str:
        """Builds one thing; returns what went wrong, or nothing."""
        name = step.recipe.hash()
        try:
            with self._watcher.task(step.recipe.label, lambda: share_of(self._log(step))) as done:
                message = self._build(step)
                done("error" if message else "ok", message or self._outcome(step.recipe))
        except BaseException:
            self._failed.add(name)
            raise
        finally:
            self._ended[name].set()
        return f"{step.recipe.label}: {message}" if message else ""

    def _log(self, step: Step) -> Path:
        """Where the progress of a training is noted."""
        if isinstance(step.recipe, VictimRecipe):
            return self._zoo.folder(step.recipe) / "train.jsonl"
        return AssetStore(self._settings.root).folder(step.recipe) / "train.jsonl"

    def _outcome(self, recipe: VictimRecipe | AssetRecipe) -> str:
        """A few words on what has been built."""
        if isinstance(recipe, VictimRecipe):
            stored = self._zoo.find(recipe)
            return describe(stored) if stored else ""
        if isinstance(recipe, PriorRecipe):
            meta = AssetStore(self._settings.root).find(recipe)
            return describe_prior(meta["figures"]) if meta else ""
        return ""

    def _build(self, step: Step) -> str:
        recipe = step.recipe
        message = self._wait(step.needs)
        if not message and not step.trained:
            message = self._run("build", recipe, step.judge)
        if message:
            self._failed.add(recipe.hash())
        if message or not isinstance(recipe, VictimRecipe):
            return message
        # The gate compares with the twin, which may still be in training.
        return self._wait(_twin_of(recipe)) or self._run("judge", recipe)

    def _wait(self, needs: Sequence[str]) -> str:
        """Waits until all of these are built; returns a message if one could not be."""
        for name in needs:
            if name in self._ended:
                self._ended[name].wait()
        lost = [s.recipe.label for s in self._steps if s.recipe.hash() in self._failed & set(needs)]
        return f"needs {lost[0]}, which could not be built" if lost else ""

    def _run(
        self, task: Task, recipe: VictimRecipe | AssetRecipe, judge: VictimRecipe | None = None
    ) -> str:
        """Runs one task in a child; returns an error message or nothing.

        Once more where the server, not the child, was lost: a build goes on from its checkpoint.
        """
        scratch = Path(tempfile.mkdtemp(prefix="build-"))
        try:
            for _ in range(2):
                ended = self._launcher.run(
                    self._job(task, recipe, judge),
                    cwd=scratch,
                    log=scratch / "log.txt",
                    seconds=_A_WEEK,
                    memory=0,
                )
                if not ended.lost:
                    break
            path = scratch / "result.json"
            if not path.exists():
                return _ending(ended)
            storage, message = _error_of(path)
            if storage:
                raise StorageError(message)
            return message.removeprefix(f"{recipe.label}: ")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _job(
        self, task: Task, recipe: VictimRecipe | AssetRecipe, judge: VictimRecipe | None
    ) -> dict[str, Any]:
        """All that a child is told."""
        settings, library = self._settings, self._settings.library
        return {
            "task": task,
            "recipe": recipe.to_dict(),
            "judge": None if judge is None else judge.to_dict(),
            "root": str(settings.root.resolve()),
            "data": str(library.data.resolve()) if library.data else None,
            "cache": str(library.cache.resolve()),
            "download": library.download,
            "folders": {name: str(path) for name, path in library.folders.items()},
            "plugins": list(settings.plugins),
            "device": settings.device,
            "threads": self._threads,
        }


def share_of(log: Path) -> float | None:
    """How much of a training is done, by the last line of its log; None where it has none."""
    try:
        last = parse_json(read_tail(log, 10_000).splitlines()[-1])
        return float(last["step"] / last["steps"])
    except (ValueError, LookupError, TypeError, ArithmeticError):
        return None


def _error_of(path: Path) -> tuple[bool, str]:
    """Whether a child could not write, and its message; empty where all went well.

    The child may have run the code of a plugin.
    """
    try:
        error = read_json(path)["error"]
        if error is None:
            return False, ""
        return bool(error["storage"]), str(error["message"]) or "it failed, and says nothing"
    except (OSError, ValueError, TypeError, KeyError) as wrong:
        return False, f"what it has left cannot be used: {type(wrong).__name__}: {wrong}"


def _ending(ended: Exit) -> str:
    """How a child ended that left no result."""
    if ended.note:
        return ended.note
    if ended.lost:
        return "the server of the child processes was lost twice"
    if ended.rc < 0:
        hint = "; is there enough memory?" if ended.rc == -signal.SIGKILL else ""
        return f"the process was ended by signal {-ended.rc}{hint}"
    return f"the process left with exit code {ended.rc} and no result"


def describe(stored: Stored) -> str:
    """A few words on a victim: training speed, then figures and the verdict of the gate."""
    meta, metrics = stored.meta, stored.meta["metrics"]
    if metrics is None:
        training = meta["training"]
        return f"{training['images_per_second']:.0f} images/s, loss {training['final_loss']:.3f}"
    text = f"ACC {100 * metrics['acc']:.2f}"
    if metrics["strengths"]:
        text += f"  ASR {100 * metrics['strengths']['x1']['asr']:.2f}"
    return text + f"  {meta['status']}" + "".join(f"; {r}" for r in meta["reasons"])
