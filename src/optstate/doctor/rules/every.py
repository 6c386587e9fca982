"""Every rule, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Sequence

from optstate.doctor.rule import Rule
from optstate.doctor.rules import (
    file_groups,
    file_names,
    live_bonds,
    live_groups,
    live_keys,
    live_schedulers,
    live_slots,
    load_done,
    load_groups,
    load_names,
    load_slots,
    state_absence,
    state_next_step,
    state_slots,
    state_steps,
    state_values,
    two_files_groups,
    two_files_state,
)

RULES: Sequence[Rule] = (
    *state_absence.RULES,
    *state_slots.RULES,
    *state_steps.RULES,
    *file_groups.RULES,
    *file_names.RULES,
    *two_files_state.RULES,
    *two_files_groups.RULES,
    *state_values.RULES,
    *state_next_step.RULES,
    *live_keys.RULES,
    *live_bonds.RULES,
    *live_slots.RULES,
    *live_groups.RULES,
    *live_schedulers.RULES,
    *load_names.RULES,
    *load_slots.RULES,
    *load_groups.RULES,
    *load_done.RULES,
)
