"""Compiled kernels: a chain of convolution, batch norm, ReLU and max-pooling in C++, about twice as fast.

They are off unless asked for, by `mp.use_compiled()` or `metapeft train --compiled`. The C++ compiler of the machine
compiles them at the first use, for its processor; what they compute is `metapeft/updates/chains.py`, their oracle in
the tests, to rounding.
"""
