"""Proof of a resume: the restored run is the uninterrupted one bit for bit, or here is the first difference."""
