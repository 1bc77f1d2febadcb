"""Where a killed training goes on: one file, written at the end of an epoch, read at the start."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.tensors import read_tensors, save_tensors

CHECKPOINT: Final = "checkpoint.safetensors"
SHARE: Final = 0.02  # of a training's time that may go into saving
_SEAL: Final = "seal"


class Stateful(Protocol):
    """Something beside the classifier that must be restored with it."""

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""


def identity_of(
    recipe_hash: str, device: str, threads: int, *inputs: Mapping[str, Tensor] | None
) -> str:
    """Everything that decides a training to the last bit.

    Args:
        recipe_hash: what is trained, and how.
        device: where; the random generators of two kinds of device have different states.
        threads: how many a CPU uses, which can change the last bits of a sum.
        inputs: the training set as it was prepared, and the weights at the start. A trigger that
            an accelerator did not reproduce must not go with half a training on another.
    """
    kind = device.partition(":")[0]
    parts = [recipe_hash, torch.__version__, kind, str(threads) if kind == "cpu" else ""]
    return " ".join([*parts, *(_digest("", tensors or {}).hex() for tensors in inputs)])


class Checkpoint:
    """Saves and restores a training.

    The first epoch is saved; after a save that took a second, the next is due when 1 / ``SHARE``
    seconds have passed. So saving costs a fixed share of the time, on any disk, with any number of
    trainings beside this one. When it saves changes no result.

    Args:
        path: the file; its folder exists.
        identity: what the training is of, from :func:`identity_of`. A file of anything else, or a
            damaged one, is ignored: the training starts from the beginning.
        also: restored with the training.
    """

    def __init__(self, path: Path, identity: str, *, also: Stateful | None = None) -> None:
        self._path, self._identity, self._also = path, identity, also
        self._cost = 0.0  # seconds that the last save took
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last, None where there is nothing to go on from."""
        try:
            tensors = read_tensors(self._path)
        except UserError:
            return None
        seal = tensors.pop(_SEAL, None)
        # safetensors sees a file that is too short, but no byte that has changed.
        if seal is None or seal.tolist() != list(_digest(self._identity, tensors)):
            return None
        if self._also is not None:
            self._also.load_state(_below("also.", tensors))
        return _below("train.", tensors)

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return SHARE * (time.monotonic() - self._saved) >= self._cost

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Replaces the file.

        Raises:
            UserError: the disk is full or not writable.
        """
        begun = time.monotonic()
        also = {} if self._also is None else self._also.state()
        named = {f"train.{name}": value for name, value in tensors.items()}
        named |= {f"also.{name}": value for name, value in also.items()}
        named = {name: value.cpu().contiguous() for name, value in named.items()}
        seal = torch.tensor(list(_digest(self._identity, named)), dtype=torch.uint8)
        save_tensors({_SEAL: seal, **named}, self._path)
        self._saved = time.monotonic()
        self._cost = self._saved - begun

    def discard(self) -> None:
        """Removes the file: the training is done and stored."""
        self._path.unlink(missing_ok=True)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of a text and of named tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
