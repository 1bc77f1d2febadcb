"""The gradient of a bilevel problem by implicit differentiation and a truncated fixed-point solve.

For an inner variable delta(theta), a fixed point of the map Phi(delta) = delta - s * dL_in/ddelta,
the implicit function theorem gives

    d/dtheta L_out(delta(theta), theta) = dL_out/dtheta + (dPhi/dtheta)^T v,
    where v solves v = (dPhi/ddelta)^T v + dL_out/ddelta.

Iterating that equation K times from zero gives the partial Neumann sum of K terms. Where the map
contracts with rate q, the relative error of v is at most q^K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def solve_fixed_point(
    slope: Tensor, outer_slope: Tensor, delta: Tensor, step: float, iterations: int
) -> Tensor:
    """K iterations of v <- (dPhi/ddelta)^T v + dL_out/ddelta from zero; the shape of delta.

    Args:
        slope: dL_in/ddelta, with its graph.
        outer_slope: dL_out/ddelta, a constant.
        delta: the inner variable; all four have one shape.
        step: s of the map Phi.
        iterations: K >= 1.
    """
    v = outer_slope  # the first iteration, from zero
    for _ in range(iterations - 1):
        (curvature,) = torch.autograd.grad(slope, delta, v, retain_graph=True)  # Hessian times v
        v = v - step * curvature + outer_slope
    return v


def hypergradient(
    inner: Tensor,
    outer: Tensor,
    delta: Tensor,
    parameters: Sequence[Tensor],
    *,
    step: float,
    iterations: int,
) -> tuple[Tensor, ...]:
    """Gradient of the outer loss that accounts for the dependence of delta on the parameters.

    Args:
        inner: the loss that delta minimises, a scalar with its graph.
        outer: the loss that the parameters minimise, a scalar with its graph; may share it.
        delta: where both were evaluated; requires a gradient.
        parameters: theta.
        step: of the fixed-point map.
        iterations: of its truncated solve.

    Returns:
        One gradient per parameter, in its shape; zeros where nothing depends on it.
    """
    (outer_slope,) = torch.autograd.grad(outer, delta, retain_graph=True)
    (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
    v = solve_fixed_point(slope, outer_slope, delta, step, iterations)
    # The gradient of this sum is dL_out/dtheta - s * (d2L_in/dtheta ddelta)^T v: one pass for both.
    total = outer - step * (slope * v).sum()
    return torch.autograd.grad(total, list(parameters), allow_unused=True, materialize_grads=True)
