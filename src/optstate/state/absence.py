"""Absence is a fact with a reason: the closed list of why a slot is not there."""

from __future__ import annotations

from enum import Enum


class Absence(Enum):
    """Why a parameter has no slot of a role; the value is the stable word used in JSON and manifests.

    >>> print(Absence.COEFFICIENT_ZERO.value, "-", Absence.COEFFICIENT_ZERO.sentence)
    coefficient-zero - its coefficient is zero, so the optimizer keeps none
    """

    NOT_KEPT = "not-kept"
    IN_GROUP = "in-group"
    COEFFICIENT_ZERO = "coefficient-zero"
    NEVER_STEPPED = "never-stepped"
    NO_GRADIENT = "no-gradient"
    FROZEN = "frozen"
    NOT_SAVED = "not-saved"
    DROPPED = "dropped"
    UNKNOWN_OPTIMIZER = "unknown-optimizer"

    @property
    def sentence(self) -> str:
        """The reason as the second half of a sentence about one slot."""
        return _SENTENCES[self][0]

    @property
    def todo(self) -> str:
        """What a user who expected the slot can do."""
        return _SENTENCES[self][1]


_SENTENCES = {
    Absence.NOT_KEPT: (
        "this optimizer, configured as it is, keeps none",
        "nothing is missing; another optimizer or flag would keep one",
    ),
    Absence.IN_GROUP: (
        "this optimizer keeps one for all parameters of a group, among its hyperparameters",
        "look at the group's hyperparameters",
    ),
    Absence.COEFFICIENT_ZERO: (
        "its coefficient is zero, so the optimizer keeps none",
        "give the param group a non-zero coefficient if you want one",
    ),
    Absence.NEVER_STEPPED: (
        "the optimizer has not stepped yet; it creates state in its first step",
        "take a step, or restore a checkpoint",
    ),
    Absence.NO_GRADIENT: (
        "this parameter never received a gradient while others did",
        "check that the loss depends on it; if it is unused on purpose, nothing is missing",
    ),
    Absence.FROZEN: (
        "the parameter is frozen (requires_grad is False) and was never updated",
        "nothing is missing; state appears once it is unfrozen and stepped",
    ),
    Absence.NOT_SAVED: (
        "the checkpoint holds no state for any parameter",
        "the optimizer's state was saved before its first step, or not at all: look at the code that saves",
    ),
    Absence.DROPPED: (
        "it was left out although the parameter has other slots: by the writer, or by a flag switched on later",
        "look for a checkpoint of the same run that still has it, or reset the parameter's state as a whole",
    ),
    Absence.UNKNOWN_OPTIMIZER: (
        "this optimizer is not in the registry, so it is not known whether it keeps one",
        "look at the slots by key, or describe the optimizer with optstate.register(...)",
    ),
}
