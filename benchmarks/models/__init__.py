"""Real architectures under updates: which of them run, each against plain torch."""
