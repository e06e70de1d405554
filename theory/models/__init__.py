"""The linear and the shallow model, and what is solved in them. NumPy and SciPy; torch only where networks are.

`problems` has settings, truths and samples as sufficient statistics, `solvers` exact minima, `tuning_error` what
those give on a new task, `dynamics` the published gradient descent; `metalearners` has Reptile, FOMAML, MAML and
iMAML in closed form, `engine` the same through metapeft; `landscape` Hessians, saddles and spurious minima;
`selection` and `generation` AutoLoRA and MetaLoRA in the linear model; `shallow` the net of the second experiment.
"""
