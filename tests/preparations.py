"""What an attacker works from, in small: noise for images, an untrained classifier for a model."""

from attacks import Assets, Attack
from bench.attack_rules import CLASSES as CLASSES
from bench.attack_rules import preparation_of as preparation_of
from bench.attack_rules import seeded as seeded
from bench.attack_rules import toy_model as toy_model


def assets_of(attack: Attack, shape: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> Assets:
    """What the attack prepares."""
    return attack.prepare(preparation_of(attack, shape, seed))
