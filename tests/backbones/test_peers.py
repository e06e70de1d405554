"""Our backbones equal those of timm and learn2learn where both say the same thing."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import nn

import metapeft as mp

pytestmark = pytest.mark.peers


def copy_in_order(source: nn.Module, target: nn.Module, renamed: dict[str, str]) -> None:
    """Load the parameters of `source`, in its order, under the names of `target`."""
    state = {}
    for name, value in source.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = value
    target.load_state_dict(state)


def randomised(module: nn.Module) -> nn.Module:
    """Random values everywhere, also where initialisation gives ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double().eval()


def assert_same(ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]) -> None:
    """To 1e-10 of the largest output: both compute the same sums, in another order."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = theirs.double().eval()(x).detach()
    torch.testing.assert_close(
        ours(x).detach(), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max())
    )


@pytest.mark.parametrize(("size", "patch", "width", "depth"), [(32, 4, 16, 1), (28, 14, 8, 3)])
def test_mixer(timm, size, patch, width, depth):
    from timm.models.mlp_mixer import MlpMixer

    ours = randomised(
        mp.backbones.mixer(ways=5, channels=3, size=size, patch=patch, width=width, depth=depth)
    )
    theirs = MlpMixer(num_classes=5, img_size=size, patch_size=patch, num_blocks=depth, embed_dim=width)
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    names = {"patches.": "stem.proj.", "classifier.": "head."}
    names |= {"token1": "mlp_tokens.fc1", "token2": "mlp_tokens.fc2"}
    names |= {"channel1": "mlp_channels.fc1", "channel2": "mlp_channels.fc2"}
    copy_in_order(ours, theirs, names)
    assert_same(ours, theirs, (3, size, size))


@pytest.mark.parametrize(("width", "depth", "heads"), [(16, 2, 4), (12, 1, 3)])
def test_vit(timm, width, depth, heads):
    from timm.models.vision_transformer import VisionTransformer

    ours = randomised(mp.backbones.vit(ways=5, channels=1, width=width, depth=depth, heads=heads))
    options = {"num_classes": 5, "img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": width}
    options |= {
        "depth": depth,
        "num_heads": heads,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }
    theirs = VisionTransformer(**options, norm_layer=nn.LayerNorm)
    state = {"pos_embed": ours.position.weight[None]}
    for name, value in ours.state_dict().items():
        for kind in ("weight", "bias"):
            if name.endswith(f"attention.query.{kind}"):
                parts = [name.replace("query", part) for part in ("query", "key", "value")]
                joined = torch.cat([ours.state_dict()[part] for part in parts])
                state[name.replace("attention.query", "attn.qkv")] = joined
        if not any(part in name for part in ("query", "key", "value", "position")):
            name = name.replace("patches.", "patch_embed.proj.").replace("classifier.", "head.")
            name = name.replace("attention.output", "attn.proj").replace("linear1", "mlp.fc1")
            state[name.replace("linear2", "mlp.fc2")] = value
    theirs.load_state_dict(state)
    assert_same(ours, theirs, (1, 28, 28))


@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_conv4(torchvision):
    with contextlib.redirect_stderr(io.StringIO()):  # the end-of-life notice of gym
        from learn2learn.vision.models import CNN4

    ours = randomised(mp.backbones.conv4(ways=5, channels=3, width=8, size=84))
    theirs = CNN4(5, hidden_size=8, channels=3, max_pool=True, layers=4, embedding_size=8 * 25)
    names = {
        f"{kind}{i + 1}.": f"features.{i}.{theirs_kind}." for i in range(4) for kind, theirs_kind in KINDS
    }
    copy_in_order(ours, theirs, names)
    assert_same(ours, theirs, (3, 84, 84))


KINDS = (("conv", "conv"), ("norm", "normalize"))
