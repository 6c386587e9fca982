"""The data model on its own: selections, accessors, absences and how a state prints. No torch here."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from optstate.errors import MissingSlot, NoSuchParameter, NothingSelected, SelectionError
from optstate.state.absence import Absence
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.state.parameter import ParameterFacts
from optstate.state.slot import Slot
from optstate.state.stats import stats
from optstate.state.table import state_table
from optstate.state.tensors import BLOCK, array_blocks


class Held:
    """An array in memory as a tensor reference."""

    def __init__(self, array, dtype="float32"):
        self.values = np.asarray(array)
        self.dtype = dtype

    @property
    def shape(self):
        return self.values.shape

    def array(self):
        return self.values

    def blocks(self):
        return array_blocks(self.values)

    def item(self):
        return self.values.item()


def parameter(name, shape=(2, 3), group=0, slots=True, certainty="file", absences=None):
    facts = ParameterFacts(name=name, certainty=certainty, shape=shape, dtype="float32", optimizer="", group=group)
    held = {
        "step": Slot(name, "step", "step", Held(np.float32(7))),
        "exp_avg": Slot(name, "exp_avg", "momentum", Held(np.ones(shape)), "ema_debiased", "gradient"),
        "odd": Slot(name, "odd", "other", [1, 2], primary=False),
    }
    return FrozenParameter(facts, held if slots else {}, absences or {})


def state(*parameters):
    names = tuple(parameter.facts.name for parameter in parameters)
    group = Group("", 0, {"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False}, names)
    info = OptimizerInfo("", "torch.optim.adam.Adam", (group,), known=True)
    return OptimizerState(FrozenSource(parameters, {"": info}))


@pytest.fixture
def five():
    """Five parameters of a small network, one of them without state."""
    return state(
        parameter("layers.0.weight"),
        parameter("layers.0.bias", shape=(3,), group=1),
        parameter("layers.1.weight"),
        parameter("layers.1.bias", shape=(3,), group=1),
        parameter("head.weight", slots=False, absences={"momentum": Absence.FROZEN}),
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", 5),
        ("layers.*", 4),
        ("layers.*.weight", 2),  # a star crosses dots
        ("*weight", 3),
        ("layers.", 4),  # a trailing dot is a prefix
        (r"re:layers\.\d\.bias", 2),
        ("layers.[01].bias", 2),
        ("head.weight", 1),
    ],
)
def test_patterns(five, pattern, names):
    """Globs, prefixes and regular expressions match whole names, in the state's order."""
    selection = five.select(pattern)
    assert len(selection) == names
    assert list(selection.names) == [name for name in five if name in selection]


def test_predicates_narrow_a_selection(five):
    """Group, dimensions, role and whether there is any state."""
    assert five.select(ndim=1).names == five.select(group=1).names == ("layers.0.bias", "layers.1.bias")
    assert len(five.select(role="momentum")) == len(five.select(trained=True)) == 4
    assert five.select(trained=False).names == ("head.weight",)
    assert len(five.select(dtype="float32", optimizer="")) == 5


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layer.*", r"did you mean 'layers\.\*' \(4 parameters\)"),
        ("layers.0.wieght", r"did you mean 'layers\.0\.weight' \(1 parameter\)"),
        ("re:nothing", r"5 parameters by other names"),
        ("decoder.*", r"5 parameters"),
    ],
)
def test_matching_nothing_names_the_nearest(five, pattern, hint):
    """An empty selection is an error that says what was probably meant."""
    with pytest.raises(NothingSelected, match=hint):
        five.select(pattern)


def test_predicates_that_leave_nothing_say_which(five):
    """When the name matches but a predicate does not, the message blames the predicate."""
    with pytest.raises(NothingSelected, match=r"4 parameters by name, none with ndim=5"):
        five.select("layers.*", ndim=5)


def test_wrong_roles_and_expressions_are_refused(five):
    """A misspelt role and a broken regular expression are errors, not empty results."""
    with pytest.raises(SelectionError, match="did you mean 'momentum'"):
        five.select(role="momemtum")
    with pytest.raises(SelectionError, match="not a regular expression"):
        five.select("re:(")


def test_unknown_names_are_key_errors_with_a_hint(five):
    """`state[name]` raises a KeyError that names the nearest, and `in` is plainly False."""
    with pytest.raises(NoSuchParameter, match=r"nearest: layers\.0\.weight"):
        five["layers.0.weigth"]
    with pytest.raises(KeyError):
        five["x"]
    with pytest.raises(NoSuchParameter, match="by its name, not by a int"):
        five[0]
    assert "layers.0.weight" in five
    assert "x" not in five
    assert 0 not in five


def test_accessors_find_slots_by_role_and_key(five):
    """A role leads to its primary slot, a key to any slot."""
    weight = five["layers.0.weight"]
    assert weight.momentum is weight["exp_avg"]
    assert (weight.step.item(), weight.momentum.convention, weight.momentum.of) == (7.0, "ema_debiased", "gradient")
    assert weight["odd"].value == [1, 2]
    with pytest.raises(MissingSlot, match=r"no slot 'exp_avgs'(.|\n)*step, exp_avg, odd"):
        weight["exp_avgs"]


def test_a_missing_slot_says_why(five):
    """The message of the error is the reason of the absence."""
    with pytest.raises(MissingSlot, match="head.weight has no momentum: the parameter is frozen"):
        _ = five["head.weight"].momentum
    assert five["head.weight"].find("momentum") is None


def test_a_slot_that_is_no_number_says_so(five):
    """`item` and `array` refuse what they cannot be."""
    with pytest.raises(MissingSlot, match="not a single number"):
        five["layers.0.weight"].momentum.item()
    with pytest.raises(MissingSlot, match="a list"):
        five["layers.0.weight"]["odd"].array()
    with pytest.raises(MissingSlot, match=r"read it with \.array"):
        _ = five["layers.0.weight"].momentum.tensor


def test_every_absence_explains_itself():
    """Each reason has a sentence and a next step, and their words are stable."""
    assert all(reason.sentence and reason.todo for reason in Absence)
    assert {reason.value for reason in Absence} == {
        "not-kept",
        "in-group",
        "coefficient-zero",
        "never-stepped",
        "no-gradient",
        "frozen",
        "not-saved",
        "dropped",
        "unknown-optimizer",
    }


def test_a_long_state_is_elided_in_the_middle_with_a_count():
    """Printing ten thousand parameters stays on a screen; asking for all shows all."""
    big = state(*(parameter(f"layers.{n}.weight") for n in range(10_000)))
    lines = str(big).splitlines()
    assert len(lines) < 60
    assert any("9,960 more" in line for line in lines)
    assert len(state_table(big, limit=None).rows) == 10_000


def test_foreign_names_cannot_leave_their_cell():
    """Escape codes, line feeds and markup in names are text, in the terminal and in HTML."""
    evil = "a\x1b[2J\n<script>alert(1)</script>"
    hostile = state(parameter(evil))
    assert "\x1b" not in str(hostile)
    assert len(state_table(hostile).rows) == 1

    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)

    page = Tags()
    page.feed(hostile._repr_html_())
    assert page.seen <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "code"}


def test_statistics_in_blocks_equal_those_at_once():
    """Streaming does not change a count, and the norm is that of the finite values."""
    values = np.zeros(3 * BLOCK + 5, np.float32)
    values[::3] = 2.0
    values[7] = np.nan
    values[BLOCK + 1] = np.inf
    found = stats(Held(values))
    finite = values[np.isfinite(values)]
    assert (found.elements, found.nonfinite, found.zeros) == (values.size, 2, int((values == 0).sum()))
    assert found.norm == pytest.approx(float(np.sqrt((finite.astype(np.float64) ** 2).sum())), rel=1e-12)


def test_complex_statistics_count_an_element_once():
    """A complex element is one element; its norm is that of both parts."""
    found = stats(Held(np.array([3 + 4j, 0, np.inf * 1j]), "complex128"))
    assert (found.elements, found.norm, found.nonfinite, found.zeros) == (3, 5.0, 1, 1)
