"""How many things at a time: the same work, in order, or over worker slots.

Cells and builds run in child processes of their own, so a slot is a thread that waits for one; a
child that dies takes nothing with it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeVar, get_args

from zoo.errors import UserError

Executor = Literal["local", "serial", "dask"]
EXECUTORS: Final[tuple[Executor, ...]] = get_args(Executor)
HOW_TO_START: Final = (
    "Start a scheduler with: dask scheduler --host 127.0.0.1 --port 8786 --no-dashboard, workers "
    "in a second terminal with: dask worker tcp://127.0.0.1:8786 --host 127.0.0.1 --nworkers 2 "
    "--nthreads 1, and add --scheduler tcp://127.0.0.1:8786. See docs/scaling.md"
)
Item = TypeVar("Item")
Result = TypeVar("Result")


def check_executor(name: str, scheduler: str, jobs: int | None, device: str | None) -> Executor:
    """The executor's own name.

    Raises:
        UserError: an unknown one; ``dask`` without what it needs, or with what it has no use for.
    """
    found = next((known for known in EXECUTORS if known == name), None)
    if found is None:
        raise UserError(f"unknown executor {name!r}. Known: {', '.join(EXECUTORS)}")
    if found != "dask":
        if scheduler:
            raise UserError(f"--scheduler goes with --executor dask, not with {found}")
        return found
    if importlib.util.find_spec("distributed") is None:
        raise UserError(
            "--executor dask needs the package distributed: pip install 'unbackdoor[dask]'"
        )
    if not scheduler:
        raise UserError(f"--executor dask needs a scheduler. {HOW_TO_START}")
    if jobs is not None and not (device or "").startswith("cuda"):
        raise UserError(
            "-j with --executor dask says how many cells share a GPU (--device cuda). On CPUs each "
            "thread of a worker is a slot: leave -j out, and start workers with --nworkers"
        )
    return found


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor, jobs: int
) -> Iterator[Result]:
    """Yields results as they come, in any order.

    Args:
        function: called with each item; its exceptions propagate.
        items: the work.
        executor: ``serial`` runs in order in this thread; else over joblib's worker slots, one for
            each child at a time (which ``dask`` has on machines of its own).
        jobs: number of slots.
    """
    if executor == "serial" or jobs == 1:
        for item in items:
            yield function(item)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(
        n_jobs=jobs,
        backend="threading",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=jobs,
    )
    yield from parallel(delayed(function)(item) for item in items)
