"""The methods of the field, each a choice of roles over the same learner.

Every recipe takes the backbone and settings, and returns a `Learner`; further keywords go to `Learner`
(`loss`, `test_steps`, `device`, `dtype`, `seed`) or to `attach` (`preprocess`, `classifier`, `output`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from metapeft.generators.generator import Generator
from metapeft.heads.head import Head
from metapeft.inner.descent import SGD
from metapeft.inner.solver import Solver
from metapeft.learner.learner import Learner
from metapeft.methods.common import encoder as encoder
from metapeft.methods.common import learns_rates as learns_rates
from metapeft.methods.common import mapping_net
from metapeft.methods.common import recipe as recipe
from metapeft.methods.common import solver as solver
from metapeft.methods.full_updates import anil as anil
from metapeft.methods.full_updates import boil as boil
from metapeft.methods.full_updates import fomaml as fomaml
from metapeft.methods.full_updates import imaml as imaml
from metapeft.methods.full_updates import maml as maml
from metapeft.methods.full_updates import meta_sgd as meta_sgd
from metapeft.methods.full_updates import reptile as reptile
from metapeft.updates.formats.cp import CP
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.formats.tensor_ring import TensorRing
from metapeft.updates.targets import Targets


def protonet(backbone: nn.Module, *, norm: str = "running", **options: Any) -> Learner:
    """Prototypical networks: nothing adapts, classes are means of features. Source: Snell et al. 2017.

    Example:
        >>> import metapeft as mp
        >>> protonet(mp.backbones.mlp(4, 3, hidden=(8,))).head_name
        'prototypes'
    """
    options = {"head": "prototypes", "outer": ("weights",), **options}
    return recipe(backbone, {}, options.pop("name", "protonet"), norm=norm, **options)


def r2d2(backbone: nn.Module, *, norm: str = "running", **options: Any) -> Learner:
    """R2-D2: a ridge regression on the features, whose penalty and scale are learned with W0.

    Source: Bertinetto et al. 2019, arXiv 1805.08136.

    Example:
        >>> import metapeft as mp
        >>> r2d2(mp.backbones.mlp(4, 3, hidden=(8,))).outer
        ('weights', 'head')
    """
    options = {"head": "ridge", "outer": ("weights", "head"), **options}
    return recipe(backbone, {}, options.pop("name", "r2d2"), norm=norm, **options)


def centroids(backbone: nn.Module, **options: Any) -> Learner:
    """Nearest centroids on the backbone as it is: nothing adapts and nothing is trained. The sanity check.

    Example:
        >>> import metapeft as mp
        >>> centroids(mp.backbones.mlp(4, 3, hidden=(8,))).trained
        {}
    """
    return protonet(backbone, **{"outer": (), "name": "centroids", **options})


def sr_lora(
    backbone: nn.Module,
    *,
    rank: int = 4,
    inner: Solver | None = None,
    head: str | Head = "prototype-init",
    **options: Any,
) -> Learner:
    """SR + LoRA: a backbone from `mp.pretrain`, LoRA and a head fitted at test; nothing is meta-trained.

    Source: the baseline of Block et al. 2025, arXiv 2410.22264.

    Example:
        >>> import metapeft as mp
        >>> sr_lora(mp.backbones.mlp(4, 3, hidden=(8,)), rank=2).adapted
        ['linear1.weight.A', 'linear1.weight.B']
    """
    options = {"inner": SGD(5, 0.1) if inner is None else inner, "head": head, "outer": (), **options}
    return recipe(backbone, LoRA(rank), options.pop("name", "sr+lora"), **options)


def lora_ml(
    backbone: nn.Module,
    *,
    rank: int = 4,
    inner: Solver | None = None,
    head: str | Head = "prototype-init",
    hypergradient: Any = "unroll",
    **options: Any,
) -> Learner:
    """LoRA-ML: W0 meta-trained so that LoRA of a low rank fits each task.

    `hypergradient="envelope"` with `inner_data="both"` is the published form; unrolled, the starts of A and B
    and the inner rates can be outer variables too.
    Source: Block et al. 2025, arXiv 2410.22264, the objective of section 3.

    Example:
        >>> import metapeft as mp
        >>> lora_ml(mp.backbones.mlp(4, 3, hidden=(8,)), rank=2).outer
        ('weights', 'factors', 'rates')
    """
    inner = SGD(5, 0.1, rates="step") if inner is None else inner
    outer = ["weights"]
    if hypergradient != "envelope":
        outer += ["factors"] + (["rates"] if learns_rates(inner) else [])
    options = {"inner": inner, "head": head, "hypergradient": hypergradient, "outer": tuple(outer), **options}
    return recipe(backbone, LoRA(rank), options.pop("name", "lora-ml"), **options)


def autolora(
    backbone: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    lr: float | None = None,
    targets: Targets = ("*query*", "*value*"),
    hypergradient: Any = "unroll",
    **options: Any,
) -> Learner:
    """AutoLoRA: selection variables weigh the terms of LoRA; W0 is frozen, one inner step is differentiated.

    Its inner rate is 0.1 unless said.

    `"finite-difference"` is the form of its equations, `"autolora"` that of its code; as published, the inner
    variables are kept: `BilevelTrainer(..., warm_start=True)`.
    Source: Zhang et al. 2024, arXiv 2403.09113.

    Example:
        >>> import metapeft as mp
        >>> autolora(mp.backbones.mlp(4, 3, hidden=(8,)), rank=2, targets="linear1").outer
        ('selection',)
    """
    inner = solver(options, lambda lr=0.1: SGD(1, lr), lr=lr)
    options = {
        "selection": "softmax",
        "outer": ("selection",),
        "head": "prototype-init",
        "hypergradient": hypergradient,
        "targets": targets,
        **options,
        "inner": inner,
    }
    return recipe(backbone, LoRA(rank, alpha), options.pop("name", "autolora"), **options)


def metalora_cp(
    backbone: nn.Module,
    *,
    rank: int = 4,
    hidden: int | None = None,
    per: str | None = None,
    head: str | Head = "prototypes",
    **options: Any,
) -> Learner:
    """MetaLoRA in CP form: W0 frozen, factors trained, seeds generated; nothing is adapted.

    Args:
        hidden, per: of the `MappingNet`, 64 and `"task"` unless said; another generator is `generator=`.

    Source: Wang & Zhao 2025, arXiv 2504.00460.

    Example:
        >>> import metapeft as mp
        >>> metalora_cp(mp.backbones.mlp(4, 3, hidden=(8,)), rank=2).seeds
        {'linear1.weight.seed': (2,)}
    """
    return _metalora(backbone, CP(rank), "metalora-cp", hidden, per, head, options)


def metalora_tr(
    backbone: nn.Module,
    *,
    rank: int = 2,
    hidden: int | None = None,
    per: str | None = None,
    head: str | Head = "prototypes",
    **options: Any,
) -> Learner:
    """MetaLoRA in tensor-ring form: a ring of rank R has the parameters of a CP update of rank R^2.

    Args:
        hidden, per: as in `metalora_cp`.

    Source: Wang & Zhao 2025, arXiv 2504.00460.

    Example:
        >>> import metapeft as mp
        >>> metalora_tr(mp.backbones.mlp(4, 3, hidden=(8,)), rank=2).seeds
        {'linear1.weight.seed': (2, 2)}
    """
    return _metalora(backbone, TensorRing(rank), "metalora-tr", hidden, per, head, options)


def _metalora(
    backbone: nn.Module,
    format: Format,
    name: str,
    hidden: int | None,
    per: str | None,
    head: str | Head,
    options: dict[str, Any],
) -> Learner:
    options = {
        "generator": mapping_net(options.pop("generator", "default"), hidden=hidden, per=per),
        "outer": ("factors", "generator"),
        "head": head,
        "targets": "body",
        **options,
    }
    return recipe(backbone, format, options.pop("name", name), **options)


def metapeft(
    backbone: nn.Module,
    *,
    format: Format | None = None,
    inner: Solver | None = None,
    head: str | Head = "prototype-init",
    hidden: int | None = None,
    selection: Any = "softmax",
    generator: str | Generator | None = "default",
    shots: int | None = None,
    **options: Any,
) -> Learner:
    """The whole: seeds generated from the support set, terms selected, factors adapted from that start.

    Args:
        format: `CP(rank=4)` unless said; `TensorRing` likewise.
        inner: the inner solver, with learnable rates a step unless said; None takes 5 steps of 0.1.
        hidden: of the encoder, 64 unless said; another generator is `generator=`.
        shots: K of the episodes. Which encoder it is: `PairEncoder` in regression, `MappingNet` for `shots=1`, else
            `ClassEncoder`.
        selection, generator: None switches either off, for an ablation.

    Example:
        >>> import metapeft as mp
        >>> metapeft(mp.backbones.mlp(4, 3, hidden=(8,))).outer
        ('weights', 'factors', 'generator', 'selection', 'rates')
    """
    inner = SGD(5, 0.1, rates="step") if inner is None else inner
    net = encoder(backbone, generator, options.get("loss"), shots, hidden=hidden)
    groups = (
        ["weights", "factors"] + ["generator"] * (net is not None) + ["selection"] * (selection is not None)
    )
    if learns_rates(inner):
        groups.append("rates")
    options = {
        "inner": inner,
        "head": head,
        "generator": net,
        "selection": selection,
        "outer": tuple(groups),
        **options,
    }
    return recipe(backbone, CP(4) if format is None else format, options.pop("name", "metapeft"), **options)
