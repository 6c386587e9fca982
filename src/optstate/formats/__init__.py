"""Reading checkpoints, ours and others', without torch and without executing anything in them."""
