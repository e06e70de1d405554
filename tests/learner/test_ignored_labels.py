"""Labels of -100: as if the item, or the token, were not there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.learner.labels import number_of_ways, without_ignored

HEADS = ("learned", "prototypes", "prototype-init", "ridge")


def made(head: str) -> mp.Learner:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return mp.methods.maml(body, head=head, inner=mp.inner.SGD(2, 0.1))


@pytest.mark.parametrize("head", HEADS)
def test_adapting_leaves_the_item_out(head: str) -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, -100])
    torch.testing.assert_close(made(head).adapt(x, y)(x), made(head).adapt(x[:5], y[:5])(x))


@pytest.mark.parametrize("head", HEADS)
def test_a_meta_step_leaves_the_item_out(head: str) -> None:
    x, y = torch.randn(2, 6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, -100]).expand(2, 6)
    whole, cut = (
        made(head).hypergradient(mp.EpisodeBatch(x[:, :n], y[:, :n], x[:, :n], y[:, :n])) for n in (6, 5)
    )
    torch.testing.assert_close(whole.value, cut.value)
    assert whole.grads
    for name, value in whole.grads.items():
        torch.testing.assert_close(value, cut.grads[name])


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).tanh())


def tagger() -> mp.Learner:
    torch.manual_seed(0)

    def loss(outputs: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), y, reduction=reduction)

    return mp.methods.maml(Tagger().double(), head="learned", loss=loss, inner=mp.inner.SGD(1, 0.5))


def test_tokens_count_as_in_torch_loss_over_all_of_them() -> None:
    x = torch.randint(0, 50, (3, 6))
    y = torch.randint(0, 3, (3, 6))
    y[0, 2:] = y[1] = -100  # of one row two tokens, of another none
    torch.manual_seed(0)
    plain = Tagger().double()
    F.cross_entropy(plain(x).flatten(0, 1), y.flatten()).backward()
    with torch.no_grad():
        for value in plain.parameters():
            value -= 0.5 * value.grad
    torch.testing.assert_close(tagger().adapt(x, y)(x), plain(x))


def test_words_are_no_ways() -> None:
    assert number_of_ways(torch.full((1, 2, 3), 50_256), None) == 1


def test_a_label_of_156_in_uint8_is_none_of_them() -> None:
    y = torch.tensor([[0, 156]], dtype=torch.uint8)
    assert without_ignored(y, None, "support") == (y, None)
    assert number_of_ways(y, None) == 157


def test_a_task_of_which_nothing_counts_is_refused() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="-100 everywhere"):
        made("learned").adapt(x, torch.tensor([-100, -100]))
    y, mask = torch.tensor([[0, -100], [0, 1]]), torch.tensor([[False, True], [True, True]])
    with pytest.raises(ValueError, match="a task of which nothing counts"):
        made("learned").adapt_many(x.expand(2, 2, 4), y, mask=mask, ways=3)
