"""Measurements: few-shot accuracy, speed against peers, the theory suite's time. Results are data files."""
