"""Tables on real language: one command each, resumable row by row."""
