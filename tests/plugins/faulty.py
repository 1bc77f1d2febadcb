"""Defenses that fail in every way a defense can, and one that works."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from defenses import Finding, NotDetectedError, base_set, defense
from zoo.models import ArchSpec, build_model, clone
from zoo.train import DivergedError


@defense("raises", paper="test", needs="nothing")
def raises(model, view):
    raise KeyError("a bug in somebody's code")


@defense("kills-itself", paper="test", needs="nothing")
def kills_itself(model, view):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_the_runner():
    """Ends the process that runs this one's fork server: a dask worker, in tests of those."""
    words = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(words[1]), signal.SIGKILL)
    time.sleep(60)


@defense("kills-its-worker", paper="test", needs="nothing")
def kills_its_worker(model, view):
    kill_the_runner()


@defense("kills-its-worker-once", paper="test", needs="nothing")
def kills_its_worker_once(model, view):
    marker = Path(__file__).with_suffix(".killed")  # the tests' own copy of this file
    if not marker.exists():
        marker.touch()
        kill_the_runner()
    return model


@defense("leaves", paper="test", needs="nothing")
def leaves(model, view):
    os._exit(7)


@defense("hangs", paper="test", needs="nothing")
def hangs(model, view):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


@defense("takes-a-while", paper="test", needs="nothing")
def takes_a_while(model, view):
    time.sleep(60)
    return model


@defense("wrong-shape", paper="test", needs="nothing")
def wrong_shape(model, view):
    return build_model(ArchSpec(name="small_vgg", num_classes=3, width=0.125))


@defense("wrong-type", paper="test", needs="nothing")
def wrong_type(model, view):
    return None


@defense("nan", paper="test", needs="nothing")
def nan(model, view):
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    return model


@defense("eats-memory", paper="test", needs="nothing")
def eats_memory(model, view):
    hoard = []
    while True:
        hoard.append(torch.ones(16, 2**20))


@defense("finds-class-two", paper="test", needs="images")
def finds_class_two(model, view):
    index = torch.tensor([0.1, 0.0, 3.0])
    pictures = torch.rand(3, 3, 8, 8, generator=view.generator)
    view.finding = Finding(
        statistic="a number",
        values=1 - index,
        index=index,
        threshold=2.0,
        flagged=(2,),
        triggers=pictures,
    )
    raise NotDetectedError("found, but not repaired")


def finding_of(classes, flagged):
    index = torch.arange(float(classes))
    return Finding(statistic="none", values=index, index=index, threshold=0.0, flagged=flagged)


@defense("flags-all", paper="test", needs="images")
def flags_all(model, view):
    view.finding = finding_of(view.num_classes, tuple(range(view.num_classes)))
    with torch.no_grad():
        model.head.weight.zero_()
    return model


@defense("finds-and-fails", paper="test", needs="images")
def finds_and_fails(model, view):
    view.finding = finding_of(view.num_classes, (1,))
    view.log(0, loss=2.0)
    raise DivergedError("the loss is nan")


@defense("finds-and-breaks", paper="test", needs="images")
def finds_and_breaks(model, view):
    view.finding = finding_of(view.num_classes, (1,))
    view.log(0, loss=2.0)
    broken = clone(model)
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    return broken


@defense("hooks", paper="test", needs="images")
def hooks(model, view):
    model.head.register_forward_hook(lambda _layer, _inputs, logits: logits.clamp(max=0.1))
    return model


@defense("walks-out", paper="test", needs="images")
def walks_out(model, view):
    sys.exit(3)


@defense("peeks", paper="test", needs="target", oracle=True)
def peeks(model, view):
    print(f"target {view.target} labels {len(view.labels)}")
    broken = clone(model)
    with torch.no_grad():
        broken.head.weight.zero_()
    return [broken, model]


@defense("finds-nothing", paper="test", needs="images")
def finds_nothing(model, view):
    with torch.no_grad():
        model.head.weight.zero_()
    raise NotDetectedError("no class stands out")


@defense("takes-what-there-is", paper="test", needs="optional")
def takes_what_there_is(model, view):
    assert (view.images is None) == (view.labels is None)
    return model


@defense("works", paper="test", needs="labels")
def works(model, view, *, lr: float = 0.5):
    images, labels = view.require_labelled()
    view.log(step=1, images=len(images), lr=lr)
    print("hello from", len(labels), "images")
    return model


@base_set("grey", paper="test", needs="nothing", booster=True)
def grey(model, view, *, per_class: int = 2):
    print(f"makes {per_class} per class")
    labels = torch.arange(view.num_classes).repeat_interleave(per_class)
    images = torch.rand(len(labels), *model.spec.image_shape, generator=view.generator)
    view.log(0, reached=0.5)
    if view.images is not None:
        return torch.cat([images, view.images]), torch.cat([labels, view.labels])
    return images, labels


@base_set("wrong-labels", paper="test", needs="nothing")
def wrong_labels(model, view):
    return torch.zeros(2, *model.spec.image_shape), torch.tensor([0, 99])


@base_set("sees-a-prior", paper="test", needs="auxiliary")
def sees_a_prior(model, view):
    view.require_prior()
    raise AssertionError("there is none in these tests")
