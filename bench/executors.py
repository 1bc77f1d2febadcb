"""How many things at a time: the same work, in order, or over worker slots.

Cells and builds run in child processes of their own, so a slot is a thread that waits for one; a
child that dies takes nothing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeVar

Executor = Literal["local", "serial"]
EXECUTORS: Final = ("local", "serial")
Item = TypeVar("Item")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor, jobs: int
) -> Iterator[Result]:
    """Yields results as they come, in any order.

    Args:
        function: called with each item; its exceptions propagate.
        items: the work.
        executor: ``serial`` runs in order in this thread, ``local`` over joblib's worker slots.
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
