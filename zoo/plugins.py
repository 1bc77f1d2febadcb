"""What a plugin's module holds for the zoo: attacks, their materials, and data sets."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from dataclasses import dataclass
from typing import Final, Literal, get_args

from attacks import Attack, Material
from attacks.base import Kind
from zoo.adoption import ATTACKS, MATERIALS, Source
from zoo.sets import SETS, SetFacts, SetMark

Thing = type[Attack] | type[Material] | SetFacts
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something that a plugin adds to the zoo."""

    kind: Literal["attack", "material", "data set"]
    name: str
    attribute: str  # what it is called in its module
    thing: Thing

    def adopt(self, source: Source) -> None:
        """Makes it known by its name, in this process.

        Raises:
            UserError: the name is taken.
        """
        if isinstance(self.thing, SetFacts):
            SETS.add(self.name, self.thing, source)
        elif issubclass(self.thing, Attack):
            ATTACKS.add(self.name, self.thing, source)
        else:
            MATERIALS.add(self.name, self.thing, source)


def find(module: types.ModuleType) -> list[Found]:
    """Everything of that kind that a module itself defines, in its order.

    Raises:
        TypeError: an attack or material without the facts that its base class asks for.
    """
    own = (
        (attribute, value)
        for attribute, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    )
    every = (found_as(attribute, value) for attribute, value in own)
    return [found for found in every if found is not None]


def found_as(attribute: str, value: object) -> Found | None:
    """An attack, a material or a data set; None where a value is none of them.

    Raises:
        TypeError: an attack or material without its facts.
    """
    mark = getattr(value, "dataset", None)
    if inspect.isfunction(value) and isinstance(mark, SetMark):
        return Found(kind="data set", name=mark.name, attribute=attribute, thing=mark.facts)
    if not isinstance(value, type) or inspect.isabstract(value):
        return None
    if issubclass(value, Attack):
        check_class(value, {"name": str, "paper": str, "kind": str})
        if value.kind not in get_args(Kind):
            allowed = ", ".join(get_args(Kind))
            raise TypeError(f"{value.__name__}: expected kind in {allowed}, got {value.kind!r}")
        return Found(kind="attack", name=value.name, attribute=attribute, thing=value)
    if issubclass(value, Material):
        check_class(value, {"name": str})
        return Found(kind="material", name=value.name, attribute=attribute, thing=value)
    return None


def check_class(found: type, facts: dict[str, type]) -> None:
    """Whether a class is a frozen dataclass with these class facts.

    Raises:
        TypeError: it is not; the message says what is missing.
    """
    for fact, kind in facts.items():
        if not isinstance(getattr(found, fact, None), kind):
            raise TypeError(f"{found.__name__}: expected the class fact {fact}: {kind.__name__}")
    if not _NAME.fullmatch(str(vars(found).get("name", ""))):
        raise TypeError(
            f"{found.__name__}: expected a name of its own like 'my-stripe' (a-z, 0-9, - and _)"
        )
    if "__dataclass_params__" not in vars(found) or not vars(found)["__dataclass_params__"].frozen:
        raise TypeError(f"{found.__name__}: expected @dataclass(frozen=True, kw_only=True)")
    for field in dataclasses.fields(found):
        if field.default is dataclasses.MISSING and issubclass(found, Attack):
            raise TypeError(f"{found.__name__}: the parameter {field.name!r} has no default")
