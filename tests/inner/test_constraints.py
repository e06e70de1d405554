"""Maps onto positive numbers, intervals and distributions against SciPy, with their inverses and derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

from metapeft import inner as mi

# what it maps onto -> the map, its inverse, further arguments, the map in SciPy
MAPS: dict[str, tuple[Any, Any, tuple[float, ...], Any]] = {
    "positive": (mi.positive, mi.from_positive, (), lambda x: np.logaddexp(0, x)),
    "box": (mi.box, mi.from_box, (-1.0, 3.0), lambda x: -1 + 4 * scipy.special.expit(x)),
    "simplex": (mi.simplex, mi.from_simplex, (), lambda x: scipy.special.softmax(x, axis=-1)),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_map_its_inverse_and_its_derivative(name: str) -> None:
    onto, back, arguments, by_scipy = MAPS[name]
    x = torch.linspace(-4, 5, 12, dtype=torch.float64).view(3, 4)
    values = onto(x, *arguments)
    np.testing.assert_allclose(values.numpy(), by_scipy(x.numpy()), rtol=1e-12, atol=0)
    again = back(values, *arguments)
    shift = x.mean(-1, keepdim=True) if name == "simplex" else 0.0  # which a softmax does not see
    # near the ends of an interval one digit in 100 is left of the distance to them
    torch.testing.assert_close(again, x - shift, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(lambda x: onto(x, *arguments), x.requires_grad_())
