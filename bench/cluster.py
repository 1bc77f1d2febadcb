"""A dask cluster as the driver sees it: reached and checked, its slots, what is sent to it.

Only plain values and files travel, see :mod:`bench.remote`. joblib's dask backend is not used: it
waits for ever where a task has killed its workers too often.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import remote
from bench.codehash import companions
from bench.executors import HOW_TO_START
from bench.harness import Settings
from bench.launcher import ClosedError, Exit
from zoo.errors import UserError
from zoo.files import write_atomic

if TYPE_CHECKING:
    from distributed import Client, Future

LOST_WORKER: Final = (
    "the workers that had this cell died, and again when it was tried once more. Is there enough "
    "memory on their machines? Their logs say more"
)
_CONNECT_SECONDS: Final = 10
_WORKER_SECONDS: Final = 30  # for workers that have just been started


class Cluster:
    """A scheduler that was reached and whose workers were checked; see :func:`connect`.

    Args:
        client: connected.
        told: what workers are told of this run, see :func:`bench.remote.told_of`.
        share: of a GPU that a cell takes; None on CPUs.
    """

    def __init__(self, client: Client, told: dict[str, Any], share: float | None) -> None:
        self._client = client
        self._share = share
        self.told = told
        self.shared = False  # whether all workers see the driver's root

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of each worker, by address."""
        with _reaching(self._client):
            found = self._client.scheduler_info(n_workers=-1)["workers"]
        if self._client.status == "closed":  # then it has answered what it knew before
            raise _gone()
        return {str(address): dict(facts) for address, facts in found.items()}

    def slots(self) -> int:
        """How many cells may run now: threads, or as many as share the GPUs."""
        return sum(self._slots_of(facts) for facts in self.workers().values())

    def _slots_of(self, facts: dict[str, Any]) -> int:
        threads = int(facts["nthreads"])
        if self._share is None:
            return threads
        return min(threads, int(facts["resources"].get("GPU", 0) / self._share))

    def check(self) -> None:
        """Asks every worker what it is and sees.

        Raises:
            UserError: there is none, or one has other code or lacks a file.
        """
        with contextlib.suppress(TimeoutError):
            self._client.wait_for_workers(1, timeout=_WORKER_SECONDS)
        if not self.workers():
            raise UserError(f"the scheduler has no worker. {HOW_TO_START}")
        if not self.slots():
            raise UserError(
                "no worker offers a GPU. Start one per GPU: CUDA_VISIBLE_DEVICES=0 dask worker "
                "ADDRESS --nthreads 4 --resources GPU=1. See docs/scaling.md"
            )
        answers: dict[str, Any] = self._client.run(remote.greet, self.told, on_error="return")
        for address, answer in answers.items():
            _check_code(address, answer)
        self.shared = all(answer["shared"] for answer in answers.values())
        for address, answer in answers.items():
            if self.shared and answer["lacks"]:
                raise UserError(
                    f"worker {address} sees the root, but not {answer['lacks'][0]} (or another "
                    "version of it). Put it where all machines see it, at the same path"
                )

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Sends a call to a free slot."""
        resources = None if self._share is None else {"GPU": self._share}
        with _reaching(self._client):
            return self._client.submit(function, *arguments, pure=False, resources=resources)

    def close(self) -> None:
        """Ends what this run still has on the workers, and the connection."""
        with contextlib.suppress(Exception):  # the scheduler, or a worker, may be gone
            self._client.run(remote.halt, self.told["run"], on_error="ignore")
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)


def _check_code(address: str, answer: dict[str, Any] | BaseException) -> None:
    """Refuses a worker that would run other code than this."""
    if isinstance(answer, BaseException):
        raise UserError(
            f"worker {address} cannot load Unbackdoor: {type(answer).__name__}: {answer}. Install "
            "the driver's version there, and restart the worker"
        )
    version, code = answer["code"]
    own_version, own_code = remote.code_identity()
    if (version, code) != (own_version, own_code):
        raise UserError(
            f"worker {address} has other code than this driver: version {version} ({code[:12]}), "
            f"here {own_version} ({own_code[:12]}). Install the same version there, and restart "
            "the worker"
        )


@contextmanager
def connect(settings: Settings, *, twins: bool = True) -> Iterator[Cluster]:
    """A cluster that was checked; what it still runs is ended at the end.

    Raises:
        UserError: distributed is not installed, the scheduler cannot be reached, or a worker is
            not fit for this run.
    """
    run = uuid.uuid4().hex
    probe = settings.root / "cache" / f"probe-{run}"
    write_atomic(probe, run)
    try:
        cluster = Cluster(
            _client(settings.scheduler),
            remote.told_of(settings, run, probe, twins=twins),
            share_of(settings.device, settings.jobs),
        )
        try:
            cluster.check()
            yield cluster
        finally:
            cluster.close()
    finally:
        probe.unlink(missing_ok=True)


def share_of(device: str, jobs: int) -> float | None:
    """What a cell takes of a GPU that so many share; None on CPUs."""
    if not device.startswith("cuda"):
        return None
    return int(1e6 / jobs) / 1e6  # rounded down, so that so many fit


def _client(address: str) -> Client:
    import dask
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters, we say ourselves
    # Weights and images travel as arguments where the root is not shared.
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot reach a scheduler at {address}: {error}. {HOW_TO_START}") from None


@contextmanager
def _reaching(client: Client, future: Future[Any] | None = None) -> Iterator[None]:
    """Talks to the scheduler. One that has died shows in many ways, few of them documented.

    Args:
        client: connected, or so it thinks.
        future: the call whose result is wanted; what that has raised passes.

    Raises:
        UserError: the scheduler went away.
    """
    from concurrent.futures import CancelledError

    from distributed.client import FutureCancelledError

    try:
        yield
    except Exception as error:
        own = future is not None and future.status == "error"
        lost = isinstance(error, OSError | CancelledError | FutureCancelledError)
        if own or (not lost and client.status == "running"):
            raise
        raise _gone() from error


def _gone() -> UserError:
    return UserError("the scheduler went away. Start it again; the same command resumes")


def result_of(future: Future[Any]) -> Any:  # noqa: ANN401 (whatever the call returned)
    """What a call returned; what it raised.

    Raises:
        KilledWorker: it has killed every worker that was given it.
        UserError: the scheduler went away.
    """
    with _reaching(future.client, future):
        return future.result()


class RemoteLauncher:
    """Runs jobs in children of workers that do not see this machine's files; thread-safe.

    Args:
        cluster: where.
        target: ``module:function``, called with the job in the child.
    """

    def __init__(self, cluster: Cluster, target: str) -> None:
        self._cluster, self._target = cluster, target
        self._closed = False

    def run(
        self, job: dict[str, Any], *, cwd: Path, log: Path, seconds: float, memory: int
    ) -> Exit:
        """Runs one job and waits for it; see :meth:`bench.launcher.Launcher.run`."""
        from distributed import KilledWorker

        if self._closed:
            raise ClosedError
        files = {path.name: path.read_bytes() for path in cwd.iterdir()}
        sources = _plugin_sources(job)
        run = self._cluster.told["run"]
        future = self._cluster.submit(
            remote.run_job, run, self._target, job, files, sources, seconds, memory
        )
        try:
            back = result_of(future)
        except KilledWorker:
            return Exit(rc=-signal.SIGKILL, timed_out=False, lost=True, note=LOST_WORKER)
        except UserError:
            if self._closed:
                raise ClosedError from None
            raise
        log.write_bytes(back["log"])
        for name, content in back["files"].items():
            (cwd / Path(name).name).write_bytes(content)
        return Exit(**back["exit"])

    def close(self) -> None:
        """Refuses whatever comes later; what runs is ended with the cluster's connection."""
        self._closed = True


def _plugin_sources(job: dict[str, Any]) -> dict[str, bytes]:
    """The plugin file that a job refers to, with what it imports from its own folder."""
    file = job.get("reference", {}).get("file")
    if not file:
        return {}
    return {path.name: path.read_bytes() for path in companions(Path(file))}
