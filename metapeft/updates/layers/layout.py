"""Where the batch axis is in what a leaf module takes and gives, found by running the backbone at two batch sizes.

Shapes alone don't tell: 8 position embeddings look like the rows of 2 tasks of 4 inputs. An axis that doubles
with the batch is the batch axis; a tensor without one (positions, shared tokens) is the same for all inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metapeft.updates.layers.nests import Argument

#: the leaf module's name, which of its calls in a run, and the argument or ("output", which)
Key = tuple[str, int, Argument]
Shapes = dict[Key, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How one tensor of a leaf module looks in a plain run: batch axis or None, number of axes, first size."""

    axis: int | None
    dim: int
    first: int

    def locate(self, x: Tensor, rows: int, certain: bool = False) -> int | None:
        """The axis of `x` that has the rows; an earlier module may have given a shared tensor one, unless `certain`."""
        if self.axis is not None or certain:
            return self.axis
        expanded = x.dim() > self.dim or (self.first == 1 and x.dim() > 0 and x.shape[0] == rows)
        return 0 if expanded else None


Layouts = dict[Key, Layout]


def compare(one: Shapes, two: Shapes) -> Layouts:
    """Layouts from the shapes at one batch size and at twice that size."""
    layouts: Layouts = {}
    for key, shape in one.items():
        other = two.get(key, ())
        doubled = [
            i for i, (a, b) in enumerate(zip(shape, other)) if len(shape) == len(other) and 0 < 2 * a == b
        ]
        layouts[key] = Layout(doubled[0] if doubled else None, len(shape), shape[0] if shape else 0)
    return layouts


def spread(x: Tensor, rows: int) -> Tensor:
    """Give a tensor that is the same for all inputs one row an input; a first size of 1 is expanded."""
    own = x if x.dim() > 0 and x.shape[0] == 1 else x.unsqueeze(0)
    return own.expand(rows, *own.shape[1:])
