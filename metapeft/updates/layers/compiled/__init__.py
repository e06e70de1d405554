"""Compiled kernels: a chain of convolution, batch norm, ReLU and max-pooling in C++, about twice as fast.

Off unless asked for: `mp.use_compiled()`, `metapeft train --compiled`. They are compiled by the C++ compiler of the
machine at the first use, for its processor; what they compute is `metapeft/updates/layers/chains.py`, their oracle in
the tests, to rounding.
"""
