"""One file per kind of case: what its rules look for."""
