"""Edits of the state in a file: recorded, measured and written block by block. No torch."""
