"""Where a killed training goes on: one file, written at the end of an epoch, read at the start."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.tensors import save_tensors

_IDENTITY: Final = "identity"


class Stateful(Protocol):
    """Something beside the classifier that must be restored with it."""

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""


class Checkpoint:
    """Saves and restores a training.

    Args:
        path: the file; its folder exists.
        identity: what the training is of. A file of anything else, or a damaged one, is ignored:
            the training starts from the beginning.
        seconds: at most one save in so many seconds; when it saves changes no result.
        also: restored with the training.
    """

    def __init__(
        self, path: Path, identity: str, *, seconds: float = 20.0, also: Stateful | None = None
    ) -> None:
        self._path, self._seconds, self._also = path, seconds, also
        self._identity = torch.tensor(list(hashlib.sha256(identity.encode()).digest())).byte()
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last, None where there is nothing to go on from."""
        try:
            tensors = load_file(self._path)
        except (OSError, SafetensorError):
            return None
        identity = tensors.pop(_IDENTITY, None)
        if identity is None or not torch.equal(identity, self._identity):
            return None
        if self._also is not None:
            self._also.load_state(_below("also.", tensors))
        return _below("train.", tensors)

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Replaces the file."""
        also = {} if self._also is None else self._also.state()
        save_tensors(
            {
                _IDENTITY: self._identity,
                **{f"train.{name}": value.cpu() for name, value in tensors.items()},
                **{f"also.{name}": value.cpu() for name, value in also.items()},
            },
            self._path,
        )
        self._saved = time.monotonic()

    def discard(self) -> None:
        """Removes the file: the training is done and stored."""
        self._path.unlink(missing_ok=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
