"""Heads on features of length one: a direction says more of a class than how large its features are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from metapeft.heads.head import Head, Tensors

CENTER = "head.center"
Normalize = Literal["l2", "center+l2"] | None


@dataclass(frozen=True)
class OnFeatures(Head):
    """Base of the heads that may normalise the features that they read, in `start` and in `logits` alike.

    `"l2"`: `f / |f|`; `"center+l2"`: `(f - c) / |f - c|`, where the centre c is the mean feature of the training images
    under W0. A learner keeps it beside its weights (`mp.fit_center` measures it) and hands it to `start` among what is
    learned, as `center`; among the head's tensors it is `head.center`, `(1 or T, F)`.
    Source: Wang et al. 2019 (SimpleShot, arXiv 1911.04623), section 3: CL2N.

    Args:
        normalize: None, `"l2"` or `"center+l2"`.

    Raises:
        ValueError: another normalisation; from `start` and `logits`, a centre that is missing.

    Example:
        >>> OnFeatures(normalize="l2").normalized(torch.tensor([[[3.0, 4.0]]]), None)
        tensor([[[0.6000, 0.8000]]])
    """

    normalize: Normalize = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.normalize not in (None, "l2", "center+l2"):
            raise ValueError(f"normalize={self.normalize!r}: allowed are None, 'l2' and 'center+l2'")

    @property
    def linear(self) -> bool:
        """Whether the logits are linear in the features as the backbone gives them."""
        return self.normalize is None and type(self).logits is OnFeatures.logits

    @property
    def reads_center(self) -> bool:
        """Whether the head needs the mean feature of the training images."""
        return self.normalize == "center+l2"

    def normalized(self, features: Tensor, center: Tensor | None) -> Tensor:
        """The features `(T, B, F)` as the head reads them; the centre is `(F,)` or `(1 or T, F)`."""
        if self.normalize is None:
            return features
        if self.reads_center:
            if center is None:
                raise ValueError(
                    'normalize="center+l2" needs the mean feature of the training images: mp.fit_center(learner, data) '
                    "measures it, and a head by itself takes it as learned={'center': (F,)}"
                )
            features = features - center.to(features).reshape(-1, 1, features.shape[-1])
        return unit(features)

    def centered(self, learned: Tensors | None) -> dict[str, Tensor]:
        """The centre among the head's tensors, `(1, F)`; `{}` where the head reads none."""
        center = None if learned is None else learned.get("center")
        return {CENTER: center.reshape(1, -1)} if self.reads_center and center is not None else {}

    def own(self, learned: Tensors | None) -> Tensors:
        """What the head learns, from a learner or as it starts."""
        given = {} if learned is None else learned
        return {**self.learned(), **given}

    def logits(self, features: Tensor, tensors: Tensors) -> Tensor:
        return super().logits(self.normalized(features, tensors.get(CENTER)), tensors)


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(..., F)` of length one, `v / sqrt(|v|^2 + eps^2)`: with derivatives of every order at 0.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    eps = torch.finfo(vectors.dtype).eps
    return vectors * (vectors.square().sum(-1, keepdim=True) + eps * eps).rsqrt()
