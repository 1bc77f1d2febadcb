"""Patches: which pixels, which values, and how their copies are laid out."""

import numpy as np
import pytest
import torch

from attacks import BadNets
from tests.preparations import assets_of, seeded

PATTERNS = [
    {"pattern": "bcu"},
    {"pattern": "white"},
    *({"pattern": "tile", "size": s} for s in (1, 2, 3, 5, 7)),
]
SIDE = {"bcu": 3, "white": 4}


def stamped(params, height=32, width=32, channels=3, strength=1, fill=128):
    """One constant image with the patch: ``int (C, H, W)``; 128 equals no value of a patch."""
    attack = BadNets(**params)
    shape = (channels, height, width)
    assets = assets_of(attack, shape)
    images = torch.full((1, *shape), fill, dtype=torch.uint8)
    return attack.amplified(images, strength, assets)[0].long()


def changed(image):
    """Pixels that the patch covers: ``bool (H, W)``."""
    return (image != 128).any(0)


@pytest.mark.parametrize("params", PATTERNS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_patch_covers_its_square_and_nothing_else(params, height, width, channels):
    side = params.get("size") or SIDE[params["pattern"]]
    margin = 1 if params["pattern"] == "white" else 0
    image = stamped(params, height, width, channels)
    expected = torch.zeros(height, width, dtype=torch.bool)
    last_row, last_column = height - margin, width - margin
    expected[last_row - side : last_row, last_column - side : last_column] = True
    assert torch.equal(changed(image), expected)
    assert int(expected.sum()) == side**2
    assert (image == image[:1]).all()  # the same in every channel
    assert set(image[:, expected].unique().tolist()) <= {0, 255}


def test_bcu_pattern_is_the_one_in_their_file():
    corner = stamped({"pattern": "bcu"})[0, 29:, 29:]
    assert corner.tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert int((corner == 255).sum()) == 4


def test_white_square_has_rows_and_columns_27_to_30():
    image = stamped({"pattern": "white"})
    assert (image[:, 27:31, 27:31] == 255).all()
    rows, columns = changed(image).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (27, 30, 27, 30)


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_tile_neighbours_always_differ_and_the_corner_is_black(size):
    corner = stamped({"pattern": "tile", "size": size})[0, 32 - size :, 32 - size :]
    assert (corner[1:] != corner[:-1]).all()
    assert (corner[:, 1:] != corner[:, :-1]).all()
    assert corner[0, 0] == 0


def test_the_single_pixel_is_white():
    assert stamped({"pattern": "tile", "size": 1})[:, 31, 31].tolist() == [255] * 3


@pytest.mark.parametrize("params", PATTERNS)
def test_stamping_is_idempotent_and_blind_to_what_it_covers(params):
    attack = BadNets(**params)
    assets = assets_of(attack)
    images = torch.randint(256, (4, 3, 32, 32), generator=seeded(1)).to(torch.uint8)
    for strength in attack.strengths:
        once = attack.amplified(images, strength, assets)
        assert torch.equal(attack.amplified(once, strength, assets), once)
        covered = changed(stamped(params, strength=strength))
        other = torch.where(covered, 255 - images, images)
        assert torch.equal(attack.amplified(other, strength, assets), once)


@pytest.mark.parametrize("params", PATTERNS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (29, 48)])
def test_copies_are_whole_apart_and_nested(params, height, width):
    side = params.get("size") or SIDE[params["pattern"]]
    one, four, nine = (stamped(params, height, width, strength=s) for s in (1, 4, 9))
    for image, count in ((one, 1), (four, 4), (nine, 9)):
        assert int(changed(image).sum()) == count * side**2
    assert (changed(four) | ~changed(one)).all()
    assert (changed(nine) | ~changed(four)).all()
    assert torch.equal(one[:, changed(one)], nine[:, changed(one)])


@pytest.mark.parametrize("params", PATTERNS)
def test_copies_lie_on_the_lattice(params):
    side = params.get("size") or SIDE[params["pattern"]]
    m = 1 if params["pattern"] == "white" else 0
    places = [m, (32 - side) // 2, 32 - side - m]
    patch = stamped(params)[0, places[2] : places[2] + side, places[2] : places[2] + side]
    for strength, used in ((4, [places[0], places[2]]), (9, places)):
        expected = torch.full((3, 32, 32), 128)
        for row in used:
            for column in used:
                expected[:, row : row + side, column : column + side] = patch
        assert torch.equal(stamped(params, strength=strength), expected)


def test_nine_copies_of_a_5x5_tile_cover_22_percent():
    nine = stamped({"pattern": "tile", "size": 5}, strength=9)
    assert float(changed(nine).float().mean()) == pytest.approx(0.22, abs=0.001)


def test_what_random_crops_leave_of_a_patch_is_what_the_handbook_says():
    # All 81 offsets of RandomCrop(32, padding=4): the share that keeps all, or any, of the patch.
    def kept(params):
        mask = np.pad(changed(stamped(params)).numpy(), 4)
        crops = [mask[r : r + 32, c : c + 32].sum() for r in range(9) for c in range(9)]
        return np.mean(np.array(crops) == mask.sum()), np.mean(np.array(crops) > 0)

    assert kept({"pattern": "bcu"}) == (pytest.approx(25 / 81), pytest.approx(49 / 81))
    assert kept({"pattern": "tile", "size": 1}) == (pytest.approx(25 / 81), pytest.approx(25 / 81))
    assert kept({"pattern": "white"})[0] == pytest.approx(36 / 81)

    # And the reason why the single pixel is white: padding paints it black in most clean crops.
    inside = np.pad(np.ones((32, 32), dtype=bool), 4)
    black = [not inside[r + 31, c + 31] for r in range(9) for c in range(9)]
    assert np.mean(black) == pytest.approx(1 - 25 / 81)


def test_meaningless_patterns_are_refused():
    with pytest.raises(ValueError, match="expected pattern in bcu, white, tile, got 'red'"):
        BadNets(pattern="red")
    with pytest.raises(ValueError, match="expected size in 1, 2, 3, 5, 7 for a tile, got None"):
        BadNets(pattern="tile")
    with pytest.raises(ValueError, match="expected size in 1, 2, 3, 5, 7 for a tile, got 4"):
        BadNets(pattern="tile", size=4)
    with pytest.raises(
        ValueError, match="size goes with pattern=tile only, got size 3 and pattern 'bcu'"
    ):
        BadNets(size=3)
    with pytest.raises(ValueError, match="expected images of at least 6x6, got 5x9"):
        BadNets(pattern="white").check(torch.arange(10), 0, 10, (3, 5, 9))


def test_there_are_no_strengths_between_one_four_and_nine():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected strength in 1, 4, 9, got 5"):
        BadNets().amplified(images, 5, {"patch": images[0, 0, :3, :3]})
