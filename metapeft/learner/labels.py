"""Class labels of episodes: how many ways they are, which of them do not count."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100  # the label, of an item or of a token, that no loss counts
MOST_WAYS = 10_000  # that labels alone may ask for: each takes memory, whether it occurs or not


def without_ignored(y: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor | None]:
    """Labels and mask `(T, B)`, with the items that are labelled -100 masked; further axes of y stay as they are.

    Raises:
        ValueError: a task of which nothing counts.

    Example:
        >>> import torch
        >>> without_ignored(torch.tensor([[2, -100]]), None, "support")
        (tensor([[2, 0]]), tensor([[ True, False]]))
    """
    counts = y.long() != IGNORED  # of uint8, -100 would be 156
    shown = counts if mask is None else counts & mask.reshape(*mask.shape, *[1] * (y.dim() - 2)).to(y.device)
    if not bool(shown.flatten(1).any(1).all()):
        raise ValueError(f"{name}_y has a task of which nothing counts: all that is not masked is {IGNORED}")
    if y.dim() > 2 or bool(counts.all()):
        return y, mask
    return y.masked_fill(~counts, 0), shown


def number_of_ways(y: Tensor, ways: int | None) -> int:
    """N of the labels `y (T, S)`: `ways` if it fits them, None for the largest label + 1.

    Labels of -100 do not count; of a regression, and of labels with further axes (words), it is `ways` or 1.

    Raises:
        ValueError: no labels, labels below 0, or not below `ways`.

    Example:
        >>> import torch
        >>> number_of_ways(torch.tensor([[0, 2, -100]]), None), number_of_ways(torch.tensor([[[50256]]]), None)
        (3, 1)
    """
    if not y.numel():
        raise ValueError(f"support_y has shape {tuple(y.shape)}: at least one labelled input is needed")
    if y.is_floating_point():
        return 1
    if y.dim() > 2:
        return 1 if ways is None else ways
    counted = y[y.long() != IGNORED]
    if not counted.numel():
        raise ValueError(f"support_y is {IGNORED} everywhere: at least one labelled input is needed")
    least, most = int(counted.min()), int(counted.max())
    found = most + 1 if ways is None else ways
    if ways is None and found > MOST_WAYS:
        raise ValueError(
            f"support_y has labels up to {most}: they would be {found} ways; number the classes of a task 0, 1, "
            "2, ..., or say ways= if so many are meant"
        )
    if least < 0 or most >= found:
        raise ValueError(
            f"support_y has labels {least} to {most}: {found} ways are labelled 0 to {found - 1}"
        )
    return found


def refuse_labels(y: Tensor, mask: Tensor | None, ways: int | None, name: str) -> None:
    """Raise ValueError for class labels, one an item, that are not 0 .. ways - 1, or below 0 where ways are not known.

    Example:
        >>> import torch
        >>> refuse_labels(torch.tensor([[0, 7]]), None, 5, "query")
        Traceback (most recent call last):
        ValueError: query_y has labels 0 to 7: 5 ways are labelled 0 to 4
    """
    if y.dim() != 2:
        return
    labels = y if mask is None else y[mask]
    least, most = (int(value) for value in labels.aminmax())
    if least < 0 or (ways is not None and most >= ways):
        wanted = (
            "classes are labelled from 0 on" if ways is None else f"{ways} ways are labelled 0 to {ways - 1}"
        )
        raise ValueError(f"{name}_y has labels {least} to {most}: {wanted}")
