"""The gallery: exhibits as a PNG sheet per data set, as one HTML page, and as JSON.

The page is complete in itself (its images are ``data:`` addresses), runs no script and can load
nothing, by its own content-security policy. Equal exhibits give equal bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from bench import sheet
from bench.app import OK
from bench.config import BUILT_IN
from bench.exhibits import FACTOR, GREY, Exhibit, PriorExhibit, exhibits, prior_exhibits
from bench.placards import LEGEND, Placard, placard, prior_placard, shorten
from bench.plan import plan_victims
from bench.verbs import Request, prepare
from zoo.errors import UserError
from zoo.files import digest, slug, write_atomic

SCHEMA: Final = 1
ENLARGED: Final = 3  # on the page
_SPACE: Final = 2  # pixels between the images of a strip, before they are enlarged
_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Room:
    """All exhibits of one data set."""

    dataset: str
    file: str  # of its sheet
    exhibits: tuple[Exhibit, ...]
    priors: tuple[PriorExhibit, ...] = ()

    @property
    def title(self) -> str:
        """The data set's name, fit to be shown."""
        return shorten(self.dataset)

    @property
    def placards(self) -> list[Placard]:
        """The exhibits with their words."""
        return [*map(placard, self.exhibits), *map(prior_placard, self.priors)]


def gallery(request: Request, images: int, json_output: bool) -> int:
    """`bench gallery`: writes the pages and says where.

    Raises:
        UserError: data is missing, something stored is damaged, or the disk is full.
    """
    settings, _ = prepare(request)
    planned = [recipe for recipe, _ in plan_victims(settings.profile)]
    base = f"bench build-zoo --profile {shlex.quote(_profile_name(request.profile))}"
    rooms: list[Room] = []
    for name in dict.fromkeys(recipe.dataset for recipe in planned):
        data = settings.library.load(name)  # one at a time in memory
        recipes = [recipe for recipe in planned if recipe.dataset == name]
        found = exhibits(settings.profile, recipes, data, settings.root, images=images, base=base)
        priors = prior_exhibits(
            settings.profile, name, settings.library, settings.root, images=images
        )
        rooms.append(
            Room(dataset=name, file=_file_of(name), exhibits=tuple(found), priors=tuple(priors))
        )
    paths = _write(settings.root / "gallery", settings.profile.name, rooms, images)
    missing = [(room, e) for room in rooms for e in room.exhibits if e.why]
    for room, exhibit in missing:
        print(f"bench: {room.title} {exhibit.attack.label()}: {exhibit.why}", file=sys.stderr)
    if json_output:
        print((settings.root / "gallery" / "gallery.json").read_text(encoding="utf-8"), end="")
    else:
        for path in paths:
            print(path)
    return OK


def _profile_name(profile: str) -> str:
    """A built-in profile's name; of a file only the last part, since pages hold no paths."""
    return profile if profile in BUILT_IN else Path(profile).name


def _file_of(dataset: str) -> str:
    """``signs.png``; names that are not file names get a few digits, to be kept apart."""
    name = slug(dataset)
    return f"{name}.png" if name == dataset else f"{name}-{digest(dataset)[:8]}.png"


def _write(folder: Path, profile: str, rooms: Sequence[Room], images: int) -> list[Path]:
    """Sheets, page and JSON, each atomically; returns their paths."""
    contents: dict[str, str | bytes] = {
        room.file: sheet.draw(f"Triggers on {room.title}", LEGEND, room.placards, images)
        for room in rooms
    }
    contents["index.html"] = to_html(profile, rooms)
    contents["gallery.json"] = json.dumps(to_json(profile, rooms), indent=1) + "\n"
    try:
        for name, content in contents.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}. Is the disk full?") from error
    return [folder / name for name in contents]


def to_json(profile: str, rooms: Sequence[Room]) -> dict[str, Any]:
    """The numbers, without the images; no path."""
    return {
        "schema": SCHEMA,
        "profile": profile,
        "page": "index.html",
        "change": {"grey": GREY, "factor": FACTOR},
        "datasets": [
            {
                "dataset": room.dataset,
                "sheet": room.file,
                "rows": [_row(exhibit) for exhibit in room.exhibits],
                "priors": [
                    {"recipe": prior.recipe.to_dict(), "figures": prior.figures}
                    for prior in room.priors
                ],
            }
            for room in rooms
        ],
    }


def _row(exhibit: Exhibit) -> dict[str, Any]:
    attack, victim = exhibit.attack, exhibit.victim
    images = zip(exhibit.rows, exhibit.classes, exhibit.goals, strict=True)
    return {
        "attack": attack.label(),
        "name": attack.name,
        "params": attack.params(),
        "kind": attack.kind,
        "label_rule": attack.label_rule,
        "poison_rate": attack.poison_rate,
        "paper": attack.paper,
        "target": exhibit.target,
        "images": [{"row": row, "class": c, "goal": goal} for row, c, goal in images],
        "trigger": "missing" if exhibit.why else "drawn" if victim is None else "victim",
        "changes": {f"x{s}": dataclasses.asdict(exhibit.change(s)) for s in exhibit.triggered},
        "built": exhibit.built,
        "planned": exhibit.planned,
        "victim": None if victim is None else _victim(victim.meta),
        "why": exhibit.why,
        "command": exhibit.command,
    }


def _victim(meta: dict[str, Any]) -> dict[str, Any]:
    wanted = ("arch", "seed", "status", "reasons", "metrics", "twin_metrics")
    return {name: meta[name] for name in wanted}


def to_html(profile: str, rooms: Sequence[Room]) -> str:
    """The page as text."""
    style = (_TEMPLATES / "gallery.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("gallery.html.j2")
        .render(
            profile=profile,
            rooms=rooms,
            legend=LEGEND,
            style=Markup(style),
            policy=policy(style),
        )
    )


def policy(style: str) -> str:
    """A content-security policy that lets nothing in but this style and embedded images."""
    integrity = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{integrity}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def strip(images: Tensor) -> Image.Image:
    """Images below one another, not enlarged, with transparent space between them.

    Args:
        images: ``uint8 (n, 3, H, W)``.
    """
    count, _, height, width = images.shape
    pixels = torch.zeros(count * (height + _SPACE) - _SPACE, width, 4, dtype=torch.uint8)
    for i, image in enumerate(images):
        top = i * (height + _SPACE)
        pixels[top : top + height, :, :3] = image.permute(1, 2, 0)
        pixels[top : top + height, :, 3] = 255
    return Image.fromarray(pixels.numpy())


def _image(images: Tensor, alt: str) -> Markup:
    """An image element, enlarged by the browser without smoothing."""
    picture = strip(images)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return Markup('<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">').format(
        base64.b64encode(buffer.getvalue()).decode(),
        alt,
        ENLARGED * picture.width,
        ENLARGED * picture.height,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,  # by hand: the automatic choice goes by file name, and ours end in .j2
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(image=_image)
    return environment
