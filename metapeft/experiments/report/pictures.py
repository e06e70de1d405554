"""A sample episode as pictures: a row a class, its support images and some of its query images, framed if predicted."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from metapeft.experiments.report.drawing import COLOURS, SERIES, WIDTH
from metapeft.experiments.report.inline_svg import inline

_GAP = 0.08  # between pictures, in units of one picture
_LABEL = 0.5  # height of a line of text, in the same units
_LETTER = 0.19  # width of a capital letter, in the same units


def episode_grid(
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    names: Sequence[str] | None = None,
    queries: int = 5,
    predicted: Tensor | None = None,
) -> str:
    """Draw one episode.

    Args:
        support_x: `(S, channels, height, width)` uint8, one channel or three.
        support_y: `(S,)` labels in `0..N-1`.
        query_x: `(N*Q, channels, height, width)` uint8.
        query_y: `(N*Q,)` labels.
        names: of the N classes, written above each row; left out if None.
        queries: how many query images of a class are drawn at most.
        predicted: `(N*Q,)` labels that were predicted for the query images, each of which then has a frame: plain where
            it is right, dashed with the number of the predicted row where it is wrong. Rows are numbered from 1.

    Returns:
        An `<svg>` element: a row a class, support images to the left, query images to the right.

    Raises:
        ValueError: if images are not uint8 with 1 or 3 channels, or labels do not fit them.

    Example:
        >>> x = torch.arange(4 * 64, dtype=torch.uint8).reshape(4, 1, 8, 8)
        >>> y = torch.tensor([0, 1, 0, 1])
        >>> episode_grid(x[:2], y[:2], x, y).count("<image")
        6
    """
    for name, x, y in (("support", support_x, support_y), ("query", query_x, query_y)):
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] not in (1, 3):
            shape = tuple(x.shape)
            raise ValueError(
                f"{name}_x {shape} of {x.dtype}: must be (images, 1 or 3, height, width) of uint8"
            )
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"{name}_y has shape {tuple(y.shape)}: must be ({x.shape[0]},), a label an image"
            )
    if predicted is not None and predicted.shape != query_y.shape:
        raise ValueError(
            f"predicted has shape {tuple(predicted.shape)}: must be {tuple(query_y.shape)}, a label an image"
        )
    ways = int(max(support_y.max(), query_y.max())) + 1
    if names is not None and len(names) != ways:
        raise ValueError(f"names has {len(names)} entries: must be {ways}, one a class of the episode")
    support = [support_x[support_y == way] for way in range(ways)]
    query = [query_x[query_y == way][:queries] for way in range(ways)]
    said = [[] if predicted is None else predicted[query_y == way][:queries].tolist() for way in range(ways)]
    left = max(len(images) for images in support)
    columns = left + max(len(images) for images in query)
    step, wide = 1 + _GAP, 0.35  # the gap between support and query
    line = _LABEL if names is not None else 0.0
    longest = max(map(len, map(str, names)), default=0) if names is not None else 0
    total_width = max(columns * step + wide, _LETTER * (longest + 3))
    total_height = _LABEL + ways * (step + line)
    parts = [_text("support", 0.0, 0.0), _text("query", left * step + wide, 0.0)]
    for way in range(ways):
        top = _LABEL + way * (step + line)
        if names is not None:
            number = "" if predicted is None else f"{way + 1}  "
            parts.append(_text(number + str(names[way]), 0.0, top + 0.09, faint=True))
        places = [column * step for column in range(len(support[way]))]
        places += [(left + column) * step + wide for column in range(len(query[way]))]
        for place, image in zip(places, [*support[way], *query[way]], strict=True):
            look = 'width="1" height="1" preserveAspectRatio="none" style="image-rendering: pixelated"'
            data = f"data:image/png;base64,{_png(image)}"
            parts.append(f'<image x="{place:.3f}" y="{top + line:.3f}" {look} href="{data}"/>')
        for column, label in enumerate(said[way]):
            parts += _frame((left + column) * step + wide, top + line, label, right=label == way)
    width = min(96 * WIDTH * (1 if predicted is None else 1.6), 60 * total_width)
    height = width * total_height / total_width
    document = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {total_width:.3f} {total_height:.3f}">{"".join(parts)}</svg>'
    )
    return inline(document, f"an episode of {ways} classes: support images and query images", COLOURS)


def _text(text: str, x: float, y: float, faint: bool = False) -> str:
    look = f'font-size="0.26" fill="currentColor" opacity="{0.7 if faint else 1}"'
    return f'<text x="{x:.3f}" y="{y + 0.32:.3f}" {look}>{html.escape(text)}</text>'


def _frame(x: float, y: float, label: int, right: bool) -> list[str]:
    """Around one picture: the colour of what is right, or of what is wrong with the number that was said."""
    colour = SERIES[2 if right else 1]
    look = f'fill="none" stroke="{colour}" stroke-width="{0.07 if right else 0.12}"'
    dashes = "" if right else ' stroke-dasharray="0.22 0.1"'
    found = [f'<rect x="{x:.3f}" y="{y:.3f}" width="1" height="1" {look}{dashes}/>']
    if not right:
        place = f'x="{x:.3f}" y="{y + 0.6:.3f}" width="0.4" height="0.4" fill="{colour}"'
        digit = f'x="{x + 0.2:.3f}" y="{y + 0.92:.3f}" text-anchor="middle" font-size="0.34" fill="#000"'
        found += [f"<rect {place}/>", f"<text {digit}>{label + 1}</text>"]
    return found


def _png(image: Tensor) -> str:
    """A PNG of `(channels, height, width)` uint8, in base64."""
    pixels = image.cpu().permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
