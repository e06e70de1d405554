"""Where a generator's features come from when it is not the backbone's body: a module of its own, or the inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metapeft.generators.generator import Generator, Tensors

EMBEDDER = "embedder."  # of the parameters of a trained feature module, among the generator's


def with_own_features(generator: Generator | None, like: Tensor) -> Generator | None:
    """The generator with a copy of its feature module that nothing changes: in eval mode, frozen, in `like`'s type.

    Example:
        >>> class Own(Generator):
        ...     features = nn.Dropout()
        >>> with_own_features(Own(), torch.zeros(1)).features.training, Own.features.training
        (False, True)
    """
    if generator is None or not isinstance(generator.features, nn.Module):
        return generator
    own = copy.copy(generator)
    features = copy.deepcopy(generator.features).to(like.device, like.dtype).eval().requires_grad_(False)
    object.__setattr__(own, "features", features)
    return own


def embedder(generator: Generator) -> dict[str, Tensor]:
    """The parameters of a feature module that is trained, `embedder.<name>` -> tensor; `{}` where none is.

    Example:
        >>> class Own(Generator):
        ...     features, train_features = nn.Linear(3, 2), True
        >>> sorted(embedder(Own()))
        ['embedder.bias', 'embedder.weight']
    """
    if not generator.train_features or not isinstance(generator.features, nn.Module):
        return {}
    return {f"{EMBEDDER}{name}": value for name, value in generator.features.named_parameters()}


def features_of(generator: Generator, rows: Tensor, parameters: Tensors) -> Tensor:
    """Features `(rows, F)` of inputs `(rows, ...)`.

    Args:
        parameters: the generator's, of which a trained module takes its own.

    Raises:
        ValueError: features of another shape than the generator says.
    """
    module = generator.features
    if not isinstance(module, nn.Module):
        if not isinstance(rows, Tensor):
            raise ValueError(
                "features='inputs' reads inputs that are one tensor, and these are several: give a module, features="
            )
        features = rows.flatten(1)
    else:
        own = {
            name.removeprefix(EMBEDDER): value
            for name, value in parameters.items()
            if generator.train_features and name.startswith(EMBEDDER)
        }
        features = torch.func.functional_call(module, own, (rows,)) if own else module(rows)
    size = generator.size
    if features.dim() != 2 or (size is not None and features.shape[1] != size):
        raise ValueError(
            f"the generator's features have shape {tuple(features.shape)}: (rows, {size or 'F'}) is needed, as "
            "size= says"
        )
    return features
