"""Policies: what they can say, from Python and from TOML, and that a slip of the pen is an error."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

import optstate
from optstate.errors import PolicyError, SelectionError
from optstate.resume.policy import PRESETS, Policy

FIELDS = {each.name for each in fields(Policy)}

BAD: dict[str, list[Any]] = {
    "rename": [{"a": 1}, {"a.*": "b"}, {"a": "*.b"}, {1: "b"}, "a", ["a"], None],
    "include": ["encoder.*", [1], (None,)],
    "exclude": ["head.*", [b"head"], ["re:("]],
    "weights": ["load", "Restore", None, True, 1],
    "slots": ["loaded", "", None],
    "hyperparameters": [{"*": 0.1}, {"*": "old"}, {"lr": float("nan")}, {"lr": float("inf")}, {1: "live"}, "live"],
    "overrides": [{"*.bias": {}}, {"*.bias": 0.1}, {"re:(": {"lr": 0.1}}, {1: {"lr": 0.1}}, "lr"],
    "missing": ["leave", None, 0],
    "unexpected": ["fresh", None],
    "shape": ["padd", "live", None, 3],
    "dtype": ["float32", None],
    "optimizer_change": ["keep", None],
    "scale": [-0.1, 1.5, True, "half", None, float("nan"), {"*": 2}, {"re:(": 0.5}, {1: 0.5}],
    "objects": [{"*": "saved"}, {"*": None}, {"re:(": "live"}, {1: "live"}, "live"],
    "damaged": ["ignore", None],
}

GOOD: dict[str, Any] = {
    "rename": {"encoder.": "backbone.", "a.*.b": "c.*.d", r"re:x(\d+)": r"y\1", "": "model."},
    "include": ("encoder.*", "re:^head"),
    "exclude": ("*.bias",),
    "weights": "loaded",
    "slots": "leave",
    "hyperparameters": {"lr": "live", "betas": [0.9, 0.95], "weight_decay": 0.1, "*": "live"},
    "overrides": {"*.bias": {"weight_decay": 0.0}},
    "missing": "fresh",
    "unexpected": "leave",
    "shape": "pad",
    "dtype": "param",
    "optimizer_change": "convert",
    "scale": {"*": 0.5, "head.*": 0},
    "objects": {"*": "restore", "loader": "live"},
    "damaged": "salvage",
}


def test_every_field_is_tried():
    """A field that is added later needs its good and its bad values here."""
    assert set(BAD) == set(GOOD) == FIELDS


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=f"{name}={value!r}") for name in BAD for value in BAD[name]]
)
def test_a_value_that_means_nothing_is_an_error(name, value):
    """Each field refuses what it cannot use, as it is made, and the error names the field or the pattern."""
    with pytest.raises((PolicyError, SelectionError), match=rf"policy's {name} cannot be this|pattern|expression"):
        Policy(**{name: value})


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_good_value_is_kept(name):
    """Each field takes what its documentation says."""
    assert getattr(Policy(**{name: GOOD[name]}), name) == GOOD[name]


def test_a_shape_may_be_a_function():
    """A function that reshapes is no word, and is kept as it is."""

    def reshape(parameter, key, tensor, shape):
        return tensor.new_zeros(shape)

    assert Policy(shape=reshape).shape is reshape


def test_a_policy_is_frozen():
    """What was checked stays so."""
    with pytest.raises(FrozenInstanceError):
        setattr(Policy(), "shape", "padd")  # noqa: B010 - as a program would that knows no better


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("shap", "shape"), ("hyperparameter", "hyperparameters"), ("on_missing", "missing"), ("dtypes", "dtype")],
)
def test_a_misspelt_field_is_answered_with_the_nearest(typed, meant):
    """Presets and files take the fields of a policy, and no others."""
    with pytest.raises(PolicyError, match=f"did you mean '{meant}'"):
        Policy.strict(**{typed: "error"})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_can_be_changed(preset):
    """Further fields win over the preset's; hyperparameters and objects are added to them."""
    plain = getattr(Policy, preset)()
    changed = getattr(Policy, preset)(shape="slice", hyperparameters={"lr": 0.5}, objects={"loader": "live"})
    assert changed.shape == "slice"
    assert dict(changed.hyperparameters) == {**plain.hyperparameters, "lr": 0.5}
    assert dict(changed.objects) == {**plain.objects, "loader": "live"}
    assert {name for name in FIELDS if getattr(plain, name) != getattr(changed, name)} == {
        "shape", "hyperparameters", "objects",
    }  # fmt: skip


def test_the_presets_say_what_they_are_for():
    """What each preset means, in the values of its fields."""
    assert Policy.strict() == Policy()
    assert Policy.finetune().rest == "live"
    assert (Policy.finetune().missing, Policy.finetune().shape) == ("fresh", "fresh")
    assert Policy.new_data().scale == 0.0
    assert Policy.weights_only().slots == "fresh"


def toml(value):
    """A value as TOML writes it; strings as JSON does, which is a part of it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_file_says_the_same(tmp_path, name):
    """Each field has the same name and the same values in TOML."""
    file = tmp_path / "policy.toml"
    file.write_text(f"{name} = {toml(list(GOOD[name]) if isinstance(GOOD[name], tuple) else GOOD[name])}\n", "utf-8")
    assert Policy.load(file) == Policy.strict(**{name: GOOD[name]})


@given(some.dictionaries(some.sampled_from(sorted(GOOD)), some.just(None), max_size=6), some.sampled_from(PRESETS))
def test_a_file_of_several_fields_says_the_same(tmp_path_factory, chosen, preset):
    """Any fields together, on top of any preset."""
    file = tmp_path_factory.mktemp("policy") / "policy.toml"
    given_fields = {name: list(GOOD[name]) if isinstance(GOOD[name], tuple) else GOOD[name] for name in chosen}
    file.write_text(
        f"preset = {json.dumps(preset)}\n"
        + "".join(f"{name} = {toml(value)}\n" for name, value in given_fields.items())
    )
    assert Policy.load(file) == getattr(Policy, preset)(**given_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape = pad", "cannot be read"),
        ('preset = "fine"', "preset cannot be this"),
        ("preset = 3", "preset cannot be this"),
        ('shape = "padd"', "shape cannot be this"),
        ("[hyperparameter]\nlr = 1", "did you mean 'hyperparameters'"),
        ("include = 3", "include cannot be this"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_file_with_a_slip(tmp_path, text, message):
    """The file is refused with one error."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(PolicyError, match=message):
        Policy.load(file)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    """A missing file, a folder and bytes that are no text are the same kind of error."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "bytes.toml"):
        with pytest.raises(PolicyError, match="the policy cannot be read"):
            optstate.Policy.load(path)
