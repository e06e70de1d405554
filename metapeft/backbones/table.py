"""The table of backbones: adding one is its file and its line here.

A backbone is a plain `nn.Module` whose last layer is an `nn.Linear` named `classifier`, the output of which
is the output of the module; nothing in it knows of tasks or updates. Files are not named after the function
that they hold: importing a submodule sets its name on the package, and would hide the function.
"""

from __future__ import annotations

from metapeft.base.registry import Registry

registry = Registry(
    "metapeft.backbones",
    "backbone",
    attributes={
        "conv4": "convolutional",
        "resnet12": "residual",
        "mixer": "mlp_mixer",
        "vit": "vision_transformer",
        "mlp": "perceptron",
        "minilm": "sentence_encoder",
        "SentenceEncoder": "sentence_encoder",
    },
    names={
        "conv4": "conv4",
        "resnet12": "resnet12",
        "mixer": "mixer",
        "vit": "vit",
        "mlp": "mlp",
        "minilm": "minilm",
    },
)
