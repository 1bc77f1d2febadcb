"""Names with hyper-parameters as people write them: ``ibau[rounds=3]@fred[steps=50]``."""

from __future__ import annotations

import re
from typing import Any, Final

from zoo.errors import UserError

_SPEC: Final = re.compile(r"\s*([A-Za-z0-9_.:@/-]+)\s*(?:\[(.*)\])?\s*")


def split_base(text: str) -> tuple[str, str]:
    """``ibau[a=1]@fred[b=2]`` to the texts before and after the @; the second may be empty.

    Raises:
        UserError: nothing follows the @.
    """
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "@" and not depth:
            if not text[place + 1 :].strip():
                raise UserError(f"expected the name of a base set after the @ in {text!r}")
            return text[:place], text[place + 1 :]
    return text, ""


def split_params(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyper-parameters of the defense, and those of its base set without their prefix."""
    own = {key: value for key, value in params.items() if "." not in key}
    base = {key.partition(".")[2]: value for key, value in params.items() if "." in key}
    return own, base


def bare(spec: str) -> str:
    """``ibau[rounds=3]@fred[steps=50]`` without what is in brackets: ``ibau@fred``."""
    return re.sub(r"\[[^\]]*\]", "", spec)


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """``name[a=1, b=x]`` to a name and values (numbers and true/false are recognised).

    Raises:
        UserError: not of that form.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise UserError(f"expected NAME or NAME[key=value, ...], got {text!r}")
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (match[2] or "").split(","))):
        key, sign, value = item.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise UserError(f"expected key=value in {text!r}, got {item!r}")
        if key.strip() in values:
            raise UserError(f"{key.strip()!r} is given twice in {text!r}")
        values[key.strip()] = _scalar(value.strip())
    return match[1], values


def format_spec(name: str, overrides: dict[str, Any]) -> str:
    """The inverse of :func:`parse_spec`, in sorted order."""
    inner = ", ".join(f"{key}={overrides[key]}" for key in sorted(overrides))
    return f"{name}[{inner}]" if inner else name


def _scalar(text: str) -> Any:  # noqa: ANN401 (a JSON scalar)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
