"""A defense that leaves what no honest one would, and is gone before anybody can look."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.child import check_model
from defenses import defense
from zoo.models import clone

RESULT, WEIGHTS = Path("result.json"), Path("repaired-0.safetensors")
COST = {"seconds": 1.0, "images_forward": 0, "images_backward": 0, "peak_rss": 1, "peak_gpu": 0}


def grow(path, size):
    with path.open("ab") as stream:
        stream.truncate(size)


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def spoil(told):
    told["cost"]["seconds"] = float("nan")
    RESULT.write_text(json.dumps(told))


def claim_another(told):
    told["specs"][0] |= {"width": 8, "image_shape": [3, 1024, 1024]}
    RESULT.write_text(json.dumps(told))


def leave_nan(model):
    weights = model.state_dict()
    save_file({**weights, "head.weight": weights["head.weight"] / 0}, WEIGHTS)


def claim_much():
    entry = {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}
    text = json.dumps({"head.weight": entry}).encode()
    WEIGHTS.write_bytes(len(text).to_bytes(8, "little") + text)


def link_own(path, tensors):
    """A link to what would be good."""
    save_file(tensors, "elsewhere")
    replace_by_link(path, "elsewhere")


@defense("plants", paper="test", needs="nothing")
def plants(model, view, *, what: str = ""):
    secret = Path(__file__).with_suffix(".secret")  # beside the tests' own copy of this file
    told = {"status": "ok", "error": None, "specs": [model.spec.to_dict()], "cost": dict(COST)}
    weights = check_model(clone(model), model.spec, view)
    pictures = {"triggers": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}
    save_file(weights, WEIGHTS)
    RESULT.write_text(json.dumps(told))
    {
        "result-link": lambda: replace_by_link(RESULT, secret),
        "result-pipe": lambda: replace_by_pipe(RESULT),
        "result-huge": lambda: grow(RESULT, 10 * 2**30),
        "result-deep": lambda: RESULT.write_text('{"status": ' + 100_000 * "["),
        "result-nan": lambda: spoil(told),
        "another-model": lambda: claim_another(told),
        "weights-link": lambda: link_own(WEIGHTS, weights),
        "weights-pipe": lambda: replace_by_pipe(WEIGHTS),
        "weights-huge": lambda: grow(WEIGHTS, 10 * 2**40),
        "weights-nan": lambda: leave_nan(model),
        "weights-bomb": claim_much,
        "log-link": lambda: replace_by_link(Path("../log.txt"), secret),
        "pictures-link": lambda: link_own(Path("triggers.safetensors"), pictures),
        "pictures": lambda: save_file(pictures, "triggers.safetensors"),
    }[what]()
    os._exit(0)
