"""Writing our checkpoints: what to keep, how it is laid out, and how it becomes durable."""
