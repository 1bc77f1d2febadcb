"""Files with faults for the fuzzing tests: valid ones that somebody has tampered with.

``BENCH_FUZZ=20000 pytest tests/bench/test_fuzzing.py`` tries that many per reader.
"""

import os
import re

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXTREMES = (
    0,
    1,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
VALUES = (
    *("-1", "1e999", "NaN", "-Infinity", "null", "true", '"x"', "[]", "{}", "0.5", "-0", "1e-999"),
    *(str(2**63), "9" * 400, "9" * 5000, "[" * 3000, '"\\ud800"', '"../../x"', '"\\u0000"'),
)
_VALUE = re.compile(rb'-?[0-9.]+(?:[eE][-+]?[0-9]+)?|"[^"]*"|true|false|null')

fuzzed = settings(
    max_examples=int(os.environ.get("BENCH_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def tampered(draw, *originals):
    """Bytes of one of some valid files after one to four changes."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(("flip", "cut", "splice", "grow", "number", "value", "byte")))
        if change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[place : place + draw(st.integers(1, 1 + len(content)))]
        elif change == "splice":
            other = draw(st.sampled_from(originals))
            start = draw(st.integers(0, len(other)))
            content[place : place + draw(st.integers(0, 64))] = other[
                start : start + draw(st.integers(0, 512))
            ]
        elif change == "grow":
            content[place:place] = draw(st.binary(min_size=1, max_size=64))
        elif change == "number":  # a length or an offset
            size = draw(st.sampled_from((1, 2, 4, 8)))
            value = draw(st.sampled_from(EXTREMES)) % 256**size
            content[place : place + size] = value.to_bytes(size, "little")
        elif found := _VALUE.search(content, place):  # of JSON or TOML
            content[found.start() : found.end()] = draw(st.sampled_from(VALUES)).encode()
    return bytes(content)
