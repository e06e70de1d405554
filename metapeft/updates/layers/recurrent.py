"""Recurrent layers unrolled into their cells: torch's own kernels take no weight per task, and one derivative only.

Each takes what torch's function of its name takes. Gates stand in torch's order: i, f, g, o of an LSTM, r, z, n of a
GRU (Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv 1406.1078, with torch's place of the reset gate).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: state of a cell, gates from the input, gates from the state -> the new state; its first entry is the output
Cell = Callable[[tuple[Tensor, ...], Tensor, Tensor], tuple[Tensor, ...]]


def lstm(input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """`torch.lstm`: the output and the last states h and c.

    Args:
        input: `(B, L, F)`, or `(L, B, F)`. hx: h and c, `(layers * directions, B, H)`.
        params: of each layer and direction in turn. options: as torch's function takes them.

    Raises:
        ValueError: a packed sequence.
    """
    return _run(_lstm_cell, input, tuple(hx), params, options)


def gru(input: Tensor, hx: Tensor, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """`torch.gru`: the output and the last state; see `lstm`."""
    return _run(_gru_cell, input, (hx,), params, options)


def rnn_tanh(input: Tensor, hx: Tensor, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_tanh`; see `lstm`."""
    return _run(lambda state, x, h: (torch.tanh(x + h),), input, (hx,), params, options)


def rnn_relu(input: Tensor, hx: Tensor, params: Sequence[Tensor], *options: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_relu`; see `lstm`."""
    return _run(lambda state, x, h: (torch.relu(x + h),), input, (hx,), params, options)


#: torch's functions by name
UNROLLED = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}


def _lstm_cell(state: tuple[Tensor, ...], x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_cell(state: tuple[Tensor, ...], x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (n + torch.sigmoid(xz + hz) * (state[0] - n),)


def _run(
    cell: Cell, input: Tensor, hx: tuple[Tensor, ...], params: Sequence[Tensor], options: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    if len(options) != 6:
        raise ValueError(
            "a recurrent layer with an update reads a packed sequence: pad it "
            "(torch.nn.utils.rnn.pad_packed_sequence), or leave the layer out of targets"
        )
    has_biases, layers, dropout, train, bidirectional, batch_first = options
    x = input.transpose(0, 1) if batch_first else input  # (L, B, F)
    directions = 2 if bidirectional else 1
    each = len(params) // (layers * directions)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = params[number * each : (number + 1) * each]
            state = tuple(value[number] for value in hx)
            steps, state = _steps(cell, x.flip(0) if direction else x, state, own, has_biases)
            outputs.append(steps.flip(0) if direction else steps)
            last.append(state)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and train and layer + 1 < layers:
            x = F.dropout(x, dropout, True)
    states = tuple(torch.stack(values) for values in zip(*last))
    return (x.transpose(0, 1) if batch_first else x, *states)


def _steps(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], own: Sequence[Tensor], has_biases: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction, `(L, B, F)` to `(L, B, H)`, and the state after it."""
    biases = own[2:4] if has_biases else (None, None)
    project = own[-1] if len(own) in (3, 5) else None  # an LSTM with proj_size
    gates = F.linear(x, own[0], biases[0])
    outputs = []
    for gate in gates.unbind(0):
        state = cell(state, gate, F.linear(state[0], own[1], biases[1]))
        if project is not None:
            state = (F.linear(state[0], project), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), state
