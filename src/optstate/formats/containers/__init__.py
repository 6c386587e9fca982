"""Bytes on disk: containers of files and tensors, read safely."""
