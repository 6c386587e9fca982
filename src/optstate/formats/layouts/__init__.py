"""What other programs write: one small file for each, from what a container holds to a `Checkpoint`."""
