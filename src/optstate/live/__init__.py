"""A running optimizer and its model as named state, bound by identity."""
