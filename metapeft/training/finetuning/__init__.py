"""Plain training of updates on data without episodes: rows, batches, losses, adapters, the loop, what comes out."""
