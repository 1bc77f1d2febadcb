"""The harness as tests use it."""

from bench.config import load_profile
from bench.harness import Harness, Settings, Watcher
from bench.plan import plan_cells
from bench.registry import Registry
from bench.selection import Selection, select
from zoo.data import Library


class Setup:
    """A root with its library, profile and registry."""

    def __init__(self, root, data, profile, plugins=(), jobs=2, executor="local", **options):
        self.library = Library(data=data, cache=root / "cache")
        self.sources = tuple(map(str, plugins))
        self.registry = Registry.with_plugins(self.sources)
        self.profile = load_profile(str(profile))
        self.root, self.jobs, self.executor, self.options = root, jobs, executor, options

    def run(self, *defenses, budgets=None, twins=True, **limits):
        pick = Selection(defenses=defenses or None, budgets=budgets)
        profile = select(self.profile, pick, self.library)
        changed = profile.limits.model_copy(update=limits)
        profile = profile.model_copy(update={"limits": changed})
        settings = Settings(
            root=self.root,
            profile=profile,
            library=self.library,
            device="cpu",
            jobs=self.jobs,
            executor=self.executor,
            sources=self.sources,
            **self.options,
        )
        cells, missing = plan_cells(profile, self.registry, self.root, self.library, twins=twins)
        assert not missing
        with Harness(settings) as harness:
            todo, fresh = harness.todo(cells)
            self.cells, self.ran = cells, list(harness.run(todo, Watcher()))
        return [*fresh, *self.ran]


def by_cell(records):
    return {(r.cell.defense, r.cell.budget, r.cell.attack): r for r in records}
