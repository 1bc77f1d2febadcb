"""AutoAttack (Croce & Hein, arXiv:2003.01690), by its authors' code; an extra that may be missing.

The standard version: APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB, and
the Square attack with 5,000 queries, each on what those before it have left.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from importlib.metadata import version
from typing import Final

import torch
from torch import Tensor

from zoo.models import Classifier
from zoo.pgd import LEVELS, perturbed

PACKAGE: Final = "pyautoattack"
LEAST_CLASSES: Final = 4  # the targeted DLR loss compares the lead with the fourth logit
_TARGETS: Final = 9  # classes that targeted attacks try, where there are so many others
_BATCH: Final = 250
_ALONE: Final = threading.Lock()  # it draws from torch's global generator, which threads share


def autoattack_version() -> str:
    """``pyautoattack 0.2.0``; empty where it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return ""
    return f"{PACKAGE} {version(PACKAGE)}"


def withstands_autoattack(
    model: Classifier, images: Tensor, labels: Tensor, *, epsilon: float, seed: int
) -> Tensor:
    """Which images the standard AutoAttack leaves rightly classified.

    What it returns is not trusted: it is put back into the ball and judged here.

    Args:
        model: in eval mode, with at least four classes; its parameters need no gradient.
        images: ``float32 (N, C, H, W)`` in [0, 1], with N > 0.
        labels: ``int64 (N,)``.
        epsilon: the largest change of a pixel value, in grey levels of 255.
        seed: of all four attacks.

    Returns:
        ``bool (N,)``.

    Raises:
        ImportError: it is not installed.
    """
    from pyautoattack import AutoAttack

    bound, device = epsilon / LEVELS, images.device
    with _ALONE, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        logging.getLogger("auto-attack").setLevel(logging.ERROR)  # its hints are on every model
        attack = AutoAttack(model, device=device, eps=bound, norm="Linf", seed=seed)
        with torch.no_grad():
            targets = min(_TARGETS, model(images[:1]).shape[1] - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
        found, _ = attack.run_standard_evaluation(images, labels, batch_size=_BATCH)
    delta = (found - images).clamp(-bound, bound)
    with torch.no_grad():
        guesses = [model(part).argmax(dim=1) for part in perturbed(images, delta).split(_BATCH)]
    right: Tensor = torch.cat(guesses) == labels
    return right
