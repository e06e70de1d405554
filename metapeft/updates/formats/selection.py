"""Selection variables: one outer weight for each rank-1 term of each update (AutoLoRA, Zhang et al. 2024).

Relaxing and rounding use one function, `Softmax.weights`: the update is trained under weights that sum to 1,
and `ranks` (ranking.py) rounds the same weights to a whole rank a layer, at which `at_ranks` sets up
retraining.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metapeft.updates.formats.format import Format
from metapeft.updates.formats.site import Site, Sites


class HasSites(Protocol):
    """What `attach` returns, as far as ranks are concerned."""

    @property
    def sites(self) -> Sites:
        """Parameter -> where its update is, and of what format."""


@dataclass(frozen=True)
class Softmax:
    """`Delta_l(alpha) = sum_j alpha_lj * term_j`, `alpha_l = softmax(logits_l)`, which sums to 1 a layer.

    At the start all logits are 0 and every term of a layer with `k` terms has the weight `1 / k`. The format
    says what a weight multiplies: LoRA's rows of A, CP's seed, the bond `r1` of a tensor ring.

    Source: AutoLoRA (arXiv 2403.09113), section 3.2.

    Example:
        >>> import metapeft as mp
        >>> model, selection = mp.attach(torch.nn.Linear(4, 3), mp.LoRA(rank=2)), Softmax()
        >>> logits = selection.start(model.sites)
        >>> logits["weight"]
        tensor([0., 0.])
        >>> halved = selection(model.sites, model.factors(), logits)
        >>> torch.equal(halved["weight.A"], model.factors()["weight.A"] / 2)
        True
    """

    def start(self, sites: Sites) -> dict[str, Tensor]:
        """Logits of equal weights: parameter -> zeros `(terms,)`, for every site whose update has terms."""
        terms = {name: site.format.terms for name, site in sites.items() if site.format.terms > 0}
        return {name: torch.zeros(count, dtype=torch.float32) for name, count in terms.items()}

    def weights(self, logits: Tensor) -> Tensor:
        """`alpha = softmax(logits)` of one layer, `(terms,)`."""
        return logits.softmax(-1)

    def __call__(
        self, sites: Sites, factors: Mapping[str, Tensor], logits: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The factors of the weighted update; pure and differentiable in factors and logits.

        Args:
            sites: where the updates are (`model.sites`).
            factors: `<parameter>.<factor>` -> `(T, ...)`; what belongs to no site passes through.
            logits: parameter -> `(terms,)`, one for each entry of `start(sites)`.

        Raises:
            ValueError: logits of another set of parameters, or of another length than the layer has terms.
        """
        expected = {name: site.format.terms for name, site in sites.items() if site.format.terms > 0}
        if set(logits) != set(expected):
            odd = sorted(set(logits) ^ set(expected))
            raise ValueError(f"logits and sites disagree on {', '.join(odd[:5])}: start from start(sites)")
        selected = dict(factors)
        for name, terms in expected.items():
            if tuple(logits[name].shape) != (terms,):
                raise ValueError(f"logits of {name!r} have shape {tuple(logits[name].shape)}, not ({terms},)")
            site = sites[name]
            local = {key: factors[f"{name}.{key}"] for key in site.format.shapes(site.geometry)}
            for key, value in site.format.select(local, self.weights(logits[name])).items():
                selected[f"{name}.{key}"] = value
        return selected

    def undone(self, sites: Sites, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Factors whose update under the weights of the start, `1 / k`, is that of `factors`.

        Example:
            >>> import metapeft as mp
            >>> model, selection = mp.attach(torch.nn.Linear(4, 3), mp.LoRA(rank=2)), Softmax()
            >>> start = model.factors()
            >>> back = selection(model.sites, selection.undone(model.sites, start), selection.start(model.sites))
            >>> torch.equal(back["weight.A"], start["weight.A"])
            True
        """
        found = dict(factors)
        for name, logits in self.start(sites).items():
            site = sites[name]
            local = {key: factors[f"{name}.{key}"] for key in site.format.shapes(site.geometry)}
            inverse = (1.0 / self.weights(logits)).to(next(iter(local.values())))
            found.update({f"{name}.{key}": v for key, v in site.format.select(local, inverse).items()})
        return found


def costs(model: HasSites | Sites) -> dict[str, int]:
    """Parameters that one term of each layer's update has (a tensor ring's: one more on the bond `r1`).

    Example:
        >>> import metapeft as mp
        >>> costs(mp.attach(torch.nn.Linear(4, 3), mp.CP(rank=2)))  # a row of A, a column of B, a seed
        {'weight': 8}
    """

    def size(site: Site, terms: int) -> int:
        shapes = site.format.at_rank(terms).shapes(site.geometry)
        return sum(math.prod(shape) for shape in shapes.values())

    return {
        name: size(site, 2) - size(site, 1) for name, site in _sites(model).items() if site.format.terms > 0
    }


def at_ranks(model: HasSites | Sites, ranks: Mapping[str, int]) -> dict[str, Format]:
    """Formats for retraining at chosen ranks: parameter -> its format at its new rank, for `attach`.

    An `alpha` that was given is kept, so that a layer's scale becomes `alpha / rank` of its new rank, as in AutoLoRA;
    the default scale of 1 stays 1. Rank 0 stays in the table, as an update without terms.

    Args:
        model: an attached model, or its `sites`.
        ranks: what `ranks()` returned: every parameter whose update has terms.

    Raises:
        ValueError: parameters that are missing or unknown.

    Example:
        >>> import metapeft as mp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
        >>> model = mp.attach(net, mp.LoRA(rank=2))
        >>> at_ranks(model, {"0.weight": 1, "1.weight": 0})
        {'0.weight': LoRA(rank=1, alpha=None), '1.weight': LoRA(rank=0, alpha=None)}
        >>> retrained = mp.attach(net, at_ranks(model, {"0.weight": 1, "1.weight": 0}))
    """
    sites = _sites(model)
    expected = {name for name, site in sites.items() if site.format.terms > 0}
    if set(ranks) != expected:
        odd = sorted(set(ranks) ^ expected)
        raise ValueError(f"ranks and the model's updates disagree on {', '.join(odd[:5])}: one rank a layer")
    return {
        name: site.format.at_rank(ranks[name]) if name in expected else site.format
        for name, site in sites.items()
    }


def _sites(model: HasSites | Sites) -> Sites:
    return model if isinstance(model, Mapping) else model.sites
