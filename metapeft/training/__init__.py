"""Training: the trainer and the loop of one run, retraining, evaluation, the choice of settings."""
