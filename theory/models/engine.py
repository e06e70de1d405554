"""The meta-learners of the linear model through metapeft's own engine, the one that trains networks.

`metapeft.hypergradient` gets the population losses, `SGD` as the inner solver and A as the outer variable;
that its gradients and solutions are those of the closed forms is what joins theory and toolkit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from metapeft.hypergradients import CG, hypergradient
from metapeft.inner import SGD
from theory.models.problems import Array

ENGINES = {"reptile": "reptile", "fomaml": "first-order", "maml": "unroll", "imaml": CG(iterations=200)}
PROXIMAL_STEPS = 400  # iMAML's inner descent, which has to converge; its rate is 1 / (largest eigenvalue)


def engine_gradient(
    method: str, base: Array, maps: Array, covariances: Array, rate: float, steps: int
) -> Array:
    """The outer gradient at A by `metapeft.hypergradient`, summed over tasks.

    Args:
        method: `reptile`, `fomaml`, `maml` or `imaml`.
        base: A, `(d, d)`.
        maps, covariances: of the tasks, `(T, d, d)`.
        rate: of the inner descent; for iMAML its proximal weight.
        steps: of the inner descent; iMAML takes as many as it needs.

    Example:
        >>> maps, unit = np.stack([np.eye(2), 3 * np.eye(2)]), np.stack([np.eye(2)] * 2)
        >>> engine_gradient("maml", np.zeros((2, 2)), maps, unit, rate=0.5, steps=1)
        array([[-1.,  0.],
               [ 0., -1.]])
    """
    targets, sigma = torch.from_numpy(np.array(maps)), torch.from_numpy(np.array(covariances))

    def loss(u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> Tensor:
        error = w["A"] - targets
        return 0.5 * ((error @ sigma) * error).sum((-2, -1))

    def start(u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"A": u["A"].expand(targets.shape)}

    solver = SGD(steps, rate)
    if method == "imaml":
        largest = float(torch.linalg.matrix_norm(sigma, 2).max())
        solver = SGD(PROXIMAL_STEPS, 1 / (largest + rate), proximal=rate)
    u = {"A": torch.from_numpy(np.array(base))}
    found = hypergradient(loss, loss, u, start, solver, ENGINES[method], task_axis=True)
    return np.asarray(len(maps) * found.grads["A"].numpy())
