"""One genuine torch file, or two, for each code that a file can show: made by torch, with the fault put in."""

from __future__ import annotations

from tests.faults import groups, mismatch, missing, store, values
from tests.faults.healthy import HEALTHY
from tests.faults.making import FAULTS, Fault

__all__ = ["FAULTS", "HEALTHY", "Fault", "groups", "mismatch", "missing", "store", "values"]
