"""The machines: what exists, what fits on it, what a run will cost, and what is wrong with it."""
