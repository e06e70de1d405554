"""What a GPU computes, and how fast, in one command of under eight minutes: see `__main__`."""
