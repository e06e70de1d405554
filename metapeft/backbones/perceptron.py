"""A multilayer perceptron, for vectors, for small images, and for the sinusoid regression of MAML."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from metapeft.backbones._building import check_depth, check_sizes, recorded, seeded


@recorded
def mlp(inputs: int = 1, outputs: int = 1, hidden: Sequence[int] = (40, 40), seed: int = 0) -> nn.Module:
    """A perceptron with ReLU between its layers; the defaults are MAML's network for sinusoid regression.

    Args:
        inputs: numbers in one input, all its axes together (784 for a 28x28 image).
        outputs: numbers in one output: classes, or dimensions of a regression target.
        hidden: units of each hidden layer; none gives a linear model.
        seed: of the initial weights (PyTorch's own initialisation); the global random state is not touched.

    Returns:
        A module from `(B, ...)` with `inputs` numbers an item to `(B, outputs)`.

    Raises:
        ValueError: for a size that is not a positive integer.

    Example:
        >>> import torch
        >>> net = mlp(inputs=1, outputs=1, hidden=(40, 40))
        >>> net(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
        >>> [name for name, _ in net.named_parameters() if name.endswith("weight")]
        ['linear1.weight', 'linear2.weight', 'classifier.weight']

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1.
    """
    if not isinstance(hidden, Sequence):
        raise ValueError(f"hidden={hidden!r}: a tuple is needed, a width each, such as ({hidden},)")
    sizes = [inputs, *hidden]
    check_depth(len(hidden) + 1, "layers")
    check_sizes(inputs=inputs, outputs=outputs, **{f"hidden[{i}]": units for i, units in enumerate(hidden)})

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index in range(1, len(sizes)):
            layers[f"linear{index}"] = nn.Linear(sizes[index - 1], sizes[index])
            layers[f"relu{index}"] = nn.ReLU()
        layers["classifier"] = nn.Linear(sizes[-1], outputs)
        return nn.Sequential(layers)

    return seeded(build, seed)
