"""The sinusoid against a loop over pixels, and the columns that rounding must leave alone."""

import math

import numpy as np
import pytest
import torch

from attacks import Sig
from attacks.sig import sinusoid
from tests.preparations import preparation_of, seeded


def triggered(images, strength=1, **params):
    attack = Sig(**params)
    preparation = preparation_of(attack, tuple(images.shape[1:]))
    return attack.amplified(images, strength, attack.prepare(preparation))


def noise(*shape, seed=1):
    return torch.randint(256, shape, generator=seeded(seed)).to(torch.uint8)


def per_pixel(images, delta, frequency):
    """The definition, one pixel after the other."""
    out = images.clone()
    n, channels, height, width = images.shape
    for index in np.ndindex(n, channels, height, width):
        v = delta * math.sin(2 * math.pi * index[3] * frequency / width)
        out[index] = min(255, max(0, round(int(images[index]) + v)))
    return out


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 9, 20)])
@pytest.mark.parametrize(("delta", "frequency"), [(20.0, 6), (60.0, 6), (33.3, 3)])
@pytest.mark.parametrize("strength", [1, 2, 3])
def test_equals_the_definition_pixel_by_pixel(shape, delta, frequency, strength):
    images = noise(*shape)
    expected = per_pixel(images, strength * delta, frequency)
    got = triggered(images, strength, delta=delta, frequency=frequency)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("delta", [20.0, 60.0])
def test_amplitude_and_norm(delta):
    v = triggered(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), delta=delta)[0].double() - 128
    assert v.abs().max() == delta
    assert (v == v[:1, :1]).all()  # the same in all channels and rows
    # Root mean square delta / sqrt(2); 3.07 of full scale at delta 20, 3.04 after rounding.
    exact = delta / 255 * math.sqrt(3 * 32 * 32 / 2)
    wave = sinusoid(32, 6).double().expand(3, 32, 32)
    assert float(delta / 255 * wave.norm()) == pytest.approx(exact, rel=1e-6)
    assert float(v.norm() / 255) == pytest.approx(exact, rel=0.011)


def test_six_cycles_per_width_repeating_every_sixteen_columns():
    wave = sinusoid(32, 6).double().numpy()
    np.testing.assert_allclose(wave[16:], wave[:16], atol=1e-6)
    spectrum = np.abs(np.fft.rfft(wave))
    assert spectrum.argmax() == 6
    assert np.delete(spectrum, 6).max() < 1e-5


def test_columns_where_the_sine_is_zero_keep_every_value():
    images = torch.arange(256, dtype=torch.uint8).repeat_interleave(32).reshape(1, 1, 256, 32)
    got = triggered(images)
    for column in (0, 8, 16, 24):
        assert torch.equal(got[..., column], images[..., column])
    # Truncation instead of rounding darkens column 16 by a level, because sin(6 pi) < 0 in floats.
    j = np.arange(32)
    truncated = (128 + 20 * np.sin(2 * np.pi * j * 6 / 32)).astype(np.uint8)
    assert 20 * np.sin(2 * np.pi * 16 * 6 / 32) == pytest.approx(-1.5e-14, rel=0.05)
    assert truncated[16] == 127


def test_poisons_four_fifths_of_the_target_class_and_keeps_its_labels():
    labels = torch.arange(10).repeat(50)
    poison = Sig().select(labels, 6, 10, seeded(), {})
    assert len(poison.index) == 40
    assert (labels[poison.index] == 6).all()
    assert torch.equal(poison.labels, labels[poison.index])


def test_errors():
    with pytest.raises(ValueError, match="expected 0 < delta <= 255, got 0"):
        Sig(delta=0)
    with pytest.raises(ValueError, match="expected 0 < delta <= 255, got 256"):
        Sig(delta=256)
    with pytest.raises(ValueError, match="expected frequency >= 1, got 0"):
        Sig(frequency=0)
    with pytest.raises(ValueError, match="expected images wider than 12 for frequency 6, got 12"):
        triggered(noise(1, 1, 12, 12))
