"""``docs/defenses.md``: everything that the code of the built-in defenses says of itself.

What a defense does at a budget follows from what it needs, by the rules that the harness itself
goes by. A test compares the page with the file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, Final

from bench.budgets import TRAINING_SET, count_of, is_labelled
from bench.child import labels_for
from bench.config import load_profile
from bench.plan import runs_once, why_not
from bench.registry import CONTROLS
from defenses import ALL, BASE_SETS, BaseSet, Defense, Robustifier

COMMAND: Final = "bench list defenses --markdown > docs/defenses.md"
CLASSES: Final = 10  # any number: only whether a budget has images matters
_ADDRESSES: Final = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
_LABELS: Final = {"none": "images", "true": "labels", "pseudo": "pseudo-labels"}
_DEPARTURES: Final = re.compile(r"[Dd]ifferences from|disagree")
_VERBATIM: Final = re.compile(r"(``.*?``|`[^`\n]*`|(?<![\w*])\*\w[^*\n]*\*(?![\w*]))", re.DOTALL)
_INTRODUCTION: Final = f"""\
# The defenses

<!-- Generated from the code, never edited: {COMMAND} -->

What each built-in defense does, from its own file in `defenses/`: mechanism, hyper-parameters with
the sources of their defaults, and every departure from its paper. A profile may shorten schedules
(its `[params.NAME]`); `bench sweep NAME --param P --values A,B` shows what a hyper-parameter does.

## At every budget

What a defense works with at each [budget](protocol.md#splits-and-budgets) of the default matrix:
"""
_LEGEND: Final = """\
*labels*: images with their true labels; with the target class where *target* is needed. *images*:
the same images, no labels. *pseudo-labels*: images with the suspicious model's own predictions for
labels. *no data*: it runs without any. *same as 0*: it needs no data, runs once and stands in every
column. *training set*: it trains anew from the victim's training set, poison included, in place of
any budget, and stands on a board of its own. –: not applicable. An *oracle* knows what no defender
has, or chooses by it: it is marked in every table and stands after the others.
"""
_BASE_SETS: Final = """\
## Base sets

What makes labelled images from the suspicious model: `ibau@fred` is I-BAU on a [base
set](base-sets.md) of FRED. A hyper-parameter is written `ibau@fred[per_class=10]`, or
`[params.fred]` in a profile.
"""


def page(entries: Sequence[Defense] = ALL) -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION, table(entries), _LEGEND]
    first_of: dict[str, str] = {}  # module: the first defense in it, which tells about the file
    for entry in entries:
        first = first_of.setdefault(entry.run.__module__, entry.name)
        parts.append(section(entry, "" if first == entry.name else first))
    parts += [_BASE_SETS, *map(builder_section, BASE_SETS)]
    return "\n".join(parts)


def table(entries: Sequence[Defense]) -> str:
    """One row per defense: what it needs and what it gets at every budget."""
    budgets = load_profile("quick").budgets
    head = ["defense", "paper", "needs", *(f"`{token}`" for token in budgets)]
    lines = [_row(head), "|" + "---|" * len(head)]
    for entry in entries:
        name = f"[`{entry.name}`](#{entry.name})" + ", oracle" * entry.oracle
        cells = [standing(entry.needs, token) for token in budgets]
        lines.append(_row([name, paper(entry), entry.needs, *cells]))
    return "\n".join(lines) + "\n"


def standing(needs: str, token: str) -> str:
    """What a defense works with at a budget."""
    if needs == TRAINING_SET:
        return "training set"
    if runs_once(needs) and token != "0":
        return "same as 0"
    images = count_of(token, CLASSES)
    if why_not(needs, images, target=0):
        return "–"
    return _LABELS[labels_for(needs, is_labelled(token))] if images else "no data"


def paper(entry: Defense | BaseSet) -> str:
    """A link, where the paper has an address."""
    kind, _, number = entry.paper.partition(":")
    if kind in _ADDRESSES and re.fullmatch(r"[^\s()]+", number):
        return f"[{entry.paper}]({_ADDRESSES[kind]}{number})"
    return prose(entry.paper)


def section(entry: Defense, elsewhere: str) -> str:
    """All about one defense; ``elsewhere`` is the defense that shares its file and stands first."""
    facts = [f"Paper: {paper(entry)}", f"needs: {entry.needs}", f"file: `{file_of(entry)}`"]
    facts += ["an oracle"] * entry.oracle + ["a control"] * (entry.name in CONTROLS)
    facts += ["[measured apart](protocol.md#robust-accuracy)"] * isinstance(entry, Robustifier)
    paragraphs = _paragraphs(entry.run if elsewhere else inspect.getmodule(entry.run))
    text = [f"## {entry.name}", *map(prose, paragraphs[:1]), f"{'; '.join(facts)}.", knobs(entry)]
    if elsewhere:
        text.append(f"Departures from the paper: those of [`{elsewhere}`](#{elsewhere}).")
    else:
        text += map(prose, departures(paragraphs[1:]))
    return "\n\n".join(text) + "\n"


def builder_section(builder: BaseSet) -> str:
    """All about one builder of base sets."""
    paragraphs = _paragraphs(inspect.getmodule(builder.run))
    prior = "a generative prior" if builder.needs == "auxiliary" else "the model alone"
    facts = [f"Paper: {paper(builder)}", f"needs: {prior}", f"file: `{file_of(builder)}`"]
    facts += ["appends clean labelled images where the budget has any"] * builder.booster
    text = [f"### {builder.name}", *map(prose, paragraphs[:1]), f"{'; '.join(facts)}."]
    return "\n\n".join([*text, knobs(builder), *map(prose, departures(paragraphs[1:]))]) + "\n"


def file_of(entry: Defense | BaseSet) -> str:
    """``defenses/ibau.py``."""
    return entry.run.__module__.replace(".", "/") + ".py"


def knobs(entry: Defense | BaseSet) -> str:
    """The hyper-parameters with defaults and the comments behind them."""
    parameters = entry.hyper_parameters()
    if not parameters:
        return "No hyper-parameters."
    source = inspect.getsource(entry.run)
    lines = [_row(["hyper-parameter", "default", "meaning"]), "|---|---|---|"]
    for name, default in parameters.items():
        lines.append(_row([f"`{name}`", f"`{default}`", prose(comment(source, name))]))
    return "\n".join(lines)


def comment(source: str, name: str) -> str:
    """What stands behind a parameter in the signature; empty where nothing does."""
    found = re.search(rf"^\s*{re.escape(name)}\s*:[^#\n]*#\s*(.*?)\s*$", source, re.MULTILINE)
    return found[1] if found else ""


def departures(paragraphs: Sequence[str]) -> list[str]:
    """The paragraphs from the one that announces differences on."""
    for i, paragraph in enumerate(paragraphs):
        if _DEPARTURES.search(paragraph.partition("\n1. ")[0]):
            return list(paragraphs[i:])
    return []


def _paragraphs(documented: Any) -> list[str]:  # noqa: ANN401 (a module or a function)
    text = inspect.getdoc(documented) or ""
    return [part.rstrip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def prose(text: str) -> str:
    """Plain text as Markdown that shows it as it is, but for code, lists and their numbers."""
    if all(line.startswith("    ") for line in text.splitlines()):
        return text  # a formula that stands for itself: a block of code
    parts = _VERBATIM.split(text)
    return "".join(p if p[:1] in ("`", "*") else _escape(p) for p in parts)


def _escape(text: str) -> str:
    """Takes their meaning from signs that have one where they stand."""
    return re.sub(
        r"(\\|(?<!^)(?<!\n)\*|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?])|\](?=[(\[]))", r"\\\1", text
    )


def _row(cells: Sequence[str]) -> str:
    inner = " | ".join(cell.replace("|", r"\|") for cell in cells)
    return f"| {inner} |"
