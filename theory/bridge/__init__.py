"""From the linear model to networks: the same comparison on real tasks, through the toolkit's own `Learner`.

`linear` runs the linear model itself through `Learner`, so that the code that trains networks is the code that
reproduces the closed forms. `tasks` and `text` give task families, `study` compares SR, Reptile and LoRA-ML on one
of them, each adapted at test with LoRA of rank r and a fresh head; `results` makes files and figure of it.
"""
