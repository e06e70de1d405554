"""MAML and its kin: full updates, of all layers or of some, from the outer weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from metapeft.hypergradients.cg import CG
from metapeft.inner.descent import SGD
from metapeft.learner.learner import Learner
from metapeft.methods.common import recipe, solver
from metapeft.updates.formats.full import Full


def maml(
    backbone: nn.Module,
    *,
    steps: int | None = None,
    lr: float | None = None,
    norm: str = "support",
    **options: Any,
) -> Learner:
    """MAML: full updates of all layers, differentiated through the inner loop.

    Args:
        steps, lr: of plain gradient descent, 5 and 0.1 unless said; any other solver is `inner=`.

    Source: Finn et al. 2017, arXiv 1703.03400, algorithm 1.

    Example:
        >>> import metapeft as mp
        >>> maml(mp.backbones.mlp(4, 3, hidden=(8,))).outer
        ('weights',)
    """
    inner = solver(options, lambda steps=5, lr=0.1: SGD(steps, lr), steps=steps, lr=lr)
    options = {"outer": ("weights",), **options, "inner": inner}
    return recipe(backbone, Full(), options.pop("name", "maml"), norm=norm, **options)


def fomaml(backbone: nn.Module, **options: Any) -> Learner:
    """First-order MAML: the inner gradients are constants. Source: Finn et al. 2017, section 5.2.

    Example:
        >>> import metapeft as mp
        >>> fomaml(mp.backbones.mlp(4, 3, hidden=(8,))).method
        'first-order'
    """
    return maml(backbone, **{"hypergradient": "first-order", "name": "fomaml", **options})


def meta_sgd(
    backbone: nn.Module, *, steps: int | None = None, lr: float | None = None, **options: Any
) -> Learner:
    """Meta-SGD: MAML with a learned rate for every element, 1 step from 0.1 unless said.

    Source: Li et al. 2017, arXiv 1707.09835.

    Example:
        >>> import metapeft as mp
        >>> learner = meta_sgd(mp.backbones.mlp(4, 3, hidden=(8,)))
        >>> tuple(learner.variables["rates.classifier.weight.delta"].shape)  # (steps, *start)
        (1, 1, 3, 8)
    """
    inner = solver(options, lambda steps=1, lr=0.1: SGD(steps, lr, rates="element"), steps=steps, lr=lr)
    options = {"outer": ("weights", "rates"), **options, "inner": inner}
    return maml(backbone, **{"name": "meta-sgd", **options})


def reptile(backbone: nn.Module, **options: Any) -> Learner:
    """Reptile: the outer gradient is the way that adaptation went, `theta_0 - theta_K`.

    As published it adapts to all data of a task: `inner_data="both"`.
    Source: Nichol et al. 2018, arXiv 1803.02999, algorithm 1.

    Example:
        >>> import metapeft as mp
        >>> learner = reptile(mp.backbones.mlp(4, 3, hidden=(8,)))
        >>> learner.method, learner.inner_data
        ('reptile', 'both')
    """
    return maml(backbone, **{"hypergradient": "reptile", "inner_data": "both", "name": "reptile", **options})


def imaml(
    backbone: nn.Module,
    *,
    steps: int | None = None,
    lr: float | None = None,
    proximal: float | None = None,
    **options: Any,
) -> Learner:
    """iMAML: full updates held near 0 by a proximal term, differentiated implicitly with conjugate gradients.

    Args:
        steps, lr, proximal: 16, 0.1 and 2.0 unless said; `proximal` is the paper's lambda.

    Source: Rajeswaran et al. 2019, arXiv 1909.04630, algorithm 1.

    Example:
        >>> import metapeft as mp
        >>> imaml(mp.backbones.mlp(4, 3, hidden=(8,))).engine.iterations
        5
    """
    inner = solver(
        options, lambda steps=16, lr=0.1, proximal=2.0: SGD(steps, lr, proximal=proximal),
        steps=steps, lr=lr, proximal=proximal,
    )  # fmt: skip
    options = {"hypergradient": CG(iterations=5), **options, "inner": inner}
    return maml(backbone, **{"name": "imaml", **options})


def anil(backbone: nn.Module, **options: Any) -> Learner:
    """ANIL: only the classifier is adapted. Source: Raghu et al. 2020, arXiv 1909.09157.

    Example:
        >>> import metapeft as mp
        >>> anil(mp.backbones.mlp(4, 3, hidden=(8,))).adapted
        ['classifier.weight.delta', 'classifier.bias.delta']
    """
    return maml(backbone, **{"targets": "head", "name": "anil", **options})


def boil(backbone: nn.Module, **options: Any) -> Learner:
    """BOIL: all but the classifier is adapted. Source: Oh et al. 2021, arXiv 2008.08882.

    Example:
        >>> import metapeft as mp
        >>> boil(mp.backbones.mlp(4, 3, hidden=(8,))).adapted
        ['linear1.weight.delta', 'linear1.bias.delta']
    """
    return maml(backbone, **{"targets": "body", "name": "boil", **options})
