"""Which of K numbers are suspiciously small, in units of the median absolute deviation (MAD)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

CONSISTENCY: Final = 1.4826  # makes the MAD of a normal sample estimate its standard deviation
MAX_INDEX: Final = 1000.0  # stands for infinity where a value deviates and the MAD is 0


def anomaly_index(values: Tensor) -> Tensor:
    """Neural Cleanse's index |v - median| / (1.4826 MAD) of every value: ``(K,)`` to ``(K,)``.

    The median of an even number of values is the mean of the middle two (numpy's convention, which
    the method's authors use; torch's is the lower one).
    """
    centre = median(values)
    deviation = (values.double() - centre).abs()
    return _in_units(deviation, median(deviation))


def left_anomaly_index(values: Tensor) -> Tensor:
    """Double MAD, left tail: deviations are measured by those of the values <= median alone.

    Values above the median have index 0: only abnormally small ones matter.
    """
    centre = median(values)
    left = (centre - values.double()).clamp(min=0)
    return _in_units(left, median(left[values.double() <= centre]))


def flag_small(values: Tensor, index: Tensor, threshold: float) -> tuple[int, ...]:
    """Positions of values below the median with an index above the threshold, smallest first."""
    suspicious = (values.double() < median(values)) & (index > threshold)
    order = values.argsort(stable=True)
    return tuple(int(i) for i in order if suspicious[i])


def median(values: Tensor) -> Tensor:
    """The median of ``(K,)`` as a double scalar; the mean of the middle two where K is even."""
    return values.double().quantile(0.5)


def _in_units(deviation: Tensor, mad: Tensor) -> Tensor:
    scaled = deviation / (CONSISTENCY * mad)  # 0 / 0 is NaN: a value that does not deviate
    return torch.nan_to_num(scaled, nan=0.0, posinf=MAX_INDEX).clamp(max=MAX_INDEX)
