"""Defenses that fail in every way a defense can, and one that works."""

import os
import signal
import time

import torch

from defenses import NotDetectedError, defense
from zoo.models import ArchSpec, build_model


@defense("raises", paper="test", needs="nothing")
def raises(model, view):
    raise KeyError("a bug in somebody's code")


@defense("kills-itself", paper="test", needs="nothing")
def kills_itself(model, view):
    os.kill(os.getpid(), signal.SIGKILL)


@defense("leaves", paper="test", needs="nothing")
def leaves(model, view):
    os._exit(7)


@defense("hangs", paper="test", needs="nothing")
def hangs(model, view):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


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
        hoard.append(torch.ones(64, 2**20))


@defense("finds-nothing", paper="test", needs="images")
def finds_nothing(model, view):
    with torch.no_grad():
        model.head.weight.zero_()
    raise NotDetectedError("no class stands out")


@defense("works", paper="test", needs="labels")
def works(model, view, *, lr: float = 0.5):
    images, labels = view.require_labelled()
    view.log(step=1, images=len(images), lr=lr)
    print("hello from", len(labels), "images")
    return model
