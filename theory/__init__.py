"""The theory suite: the linear and the shallow model of provable meta-learning, solved, checked and drawn.

`python -m theory verify` runs the theorem checks, `python -m theory figures --out DIR` draws the figures.
The folders, from the bottom up: `models` (problems, exact solvers, dynamics, meta-learners in closed form, the
shallow net), `checks` (the theorems) and `figures` (sweeps, plots, the page), which know nothing of each other, and
`bridge` (the same comparison on networks and real tasks). `cli` has the commands.

Source: Block, Srinivasan, Collins, Mokhtari, Shakkottai, NeurIPS 2025, arXiv 2410.22264.
"""
