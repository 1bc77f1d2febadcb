"""Defenses as people write them: PIL images in a DataLoader, evaluation after every epoch."""

from __future__ import annotations

import copy

import torch
from torch import nn, optim
from torch.nn import functional as F


@torch.no_grad()
def evaluate(model, loader):
    """Clean accuracy, as is usual after every epoch."""
    model.eval()
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)


def fine_tune(model, loader, test, epochs):
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        evaluate(model, test)
    return model


def attention(feature_map):
    return F.normalize(feature_map.pow(2).mean(1).flatten(1))


def nad(model, loader, test, epochs, teacher_epochs):
    """A fine-tuned teacher, and feature maps in passes of their own, as in the method's code."""
    teacher = fine_tune(copy.deepcopy(model), loader, test, teacher_epochs).eval()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            with torch.no_grad():
                wanted = teacher.stages(x)
            maps = model.stages(x)
            loss = F.cross_entropy(model.head(model.flatten(maps[-1])), y)
            for ours, theirs in zip(maps, wanted, strict=True):
                loss = loss + 1000 * F.mse_loss(attention(ours), attention(theirs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        evaluate(model, test)
    return model


class NoisyBatchNorm(nn.BatchNorm2d):
    """Masks and noises as parameters of the layer, as in the method's code."""

    def __init__(self, bn):
        super().__init__(bn.num_features)
        self.load_state_dict(bn.state_dict())
        self.mask = nn.Parameter(torch.ones_like(bn.weight))
        self.noise = nn.Parameter(torch.zeros_like(bn.weight))
        self.noise_bias = nn.Parameter(torch.zeros_like(bn.bias))

    def forward(self, x):
        weight = self.weight * (self.mask + self.noise)
        bias = self.bias * (1 + self.noise_bias)
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training)


def noisy(model):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, NoisyBatchNorm(child))
    return model


def anp(model, loader, test, epochs, epsilon=0.4, alpha=0.2):
    layers = [m for m in noisy(model).modules() if isinstance(m, NoisyBatchNorm)]
    noises = [n for layer in layers for n in (layer.noise, layer.noise_bias)]
    masks = optim.SGD([layer.mask for layer in layers], lr=0.2, momentum=0.9)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            with torch.no_grad():
                for noise in noises:
                    noise.uniform_(-epsilon, epsilon)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for noise in noises:
                    noise += epsilon * noise.grad.sign()
            model.zero_grad()
            ((1 - alpha) * F.cross_entropy(model(x), y)).backward()
            kept = [noise.detach().clone() for noise in noises]
            with torch.no_grad():
                for noise in noises:
                    noise.zero_()
            (alpha * F.cross_entropy(model(x), y)).backward()
            masks.step()
            with torch.no_grad():
                for layer in layers:
                    layer.mask.clamp_(0, 1)
                for noise, value in zip(noises, kept, strict=True):
                    noise.copy_(value)
        evaluate(model, test)
    return model


def ibau(model, loader, test, rounds, k=5):
    """The authors' loop: one perturbation per round, then a step for every batch."""
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    parameters = list(model.parameters())
    for _ in range(rounds):
        model.eval()
        delta = torch.zeros(1, 3, 32, 32, requires_grad=True)
        ascent = optim.SGD([delta], lr=10)
        for x, _ in loader:
            ascent.zero_grad()
            loss = 0.001 * delta.norm() ** 2 - F.cross_entropy(model(x + delta), model(x).argmax(1))
            loss.backward()
            ascent.step()
        first = next(iter(loader))
        for x, y in loader:
            chosen = torch.zeros(len(x), 1, 1, 1)
            chosen[: max(1, len(x) // 100)] = 1
            outer = F.cross_entropy(model(x + delta * chosen), y)
            inner = 0.001 * delta.norm() ** 2 - F.cross_entropy(model(first[0] + delta), first[1])
            (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
            (wanted,) = torch.autograd.grad(outer, delta, retain_graph=True)
            v = wanted
            for _ in range(k):
                (hv,) = torch.autograd.grad(slope, delta, v, retain_graph=True)
                v = v - 0.1 * hv + wanted
            direct = torch.autograd.grad(outer, parameters)
            mixed = torch.autograd.grad(slope, parameters, v, allow_unused=True)
            for p, a, b in zip(parameters, direct, mixed, strict=True):
                p.grad = a - 0.1 * b if b is not None else a
            optimizer.step()
        evaluate(model, test)
    return model
