"""Putting saved state back: a plan that prints itself, then applies all or nothing."""
