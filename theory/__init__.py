"""The theory suite: the linear and the shallow model of provable meta-learning, solved, checked and drawn.

`python -m theory verify` runs the theorem checks, `python -m theory figures --out DIR` draws the figures.
The modules, from the bottom up: `problems` (settings, truths, samples as sufficient statistics), `solvers`
(exact minima), `dynamics` (the published gradient descent), `metalearners` (Reptile, FOMAML, MAML, iMAML in
closed form), `landscape` (Hessians, saddles, spurious minima), `selection` and `generation` (AutoLoRA and
MetaLoRA in the linear model), `checks`, `sweeps`, `shallow`, `figures`.

Source: Block, Srinivasan, Collins, Mokhtari, Shakkottai, NeurIPS 2025, arXiv 2410.22264.
"""
