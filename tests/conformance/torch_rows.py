"""Every optimizer of `torch.optim` with every flag that changes what it computes or how, and that it takes on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from tests.conformance.row import Row

SWITCHES: tuple[dict[str, Any], ...] = (
    {"foreach": False},
    {"foreach": True},
    {"maximize": True},
    {"differentiable": True},
)
"""How most of them can compute; the first is the loop over parameters."""

FUSED, CAPTURABLE, DECAY = {"fused": True}, {"capturable": True, "foreach": False}, {"weight_decay": 0.1}
AMSGRAD, DECOUPLED = {"amsgrad": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}
TENSOR = {"lr": "tensor"}  # made where it is built, so that no two programs share it

ADAM: tuple[dict[str, Any], ...] = (
    *SWITCHES,
    FUSED,
    AMSGRAD,
    {**AMSGRAD, **FUSED},
    {**AMSGRAD, "foreach": True},
    DECAY,
    TENSOR,
)
FLAGS: dict[str, tuple[dict[str, Any], ...]] = {
    "SGD": tuple(
        {"lr": 0.05, **each}
        for each in (
            *SWITCHES, FUSED, DECAY, {"lr": "tensor"},
            *({"momentum": 0.9, **flags} for flags in (*SWITCHES, FUSED, DECAY, {"dampening": 0.5}, {"nesterov": True})),
            {"lr": 0.001, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
        )
    ),
    "Adam": (*ADAM, DECOUPLED, {"betas": (0.8, 0.9)}),
    "AdamW": (*ADAM, {"amsgrad": True, "maximize": True}),
    "NAdam": (*SWITCHES, CAPTURABLE, DECAY, DECOUPLED, {"momentum_decay": 0.1}, TENSOR),
    "RAdam": (*SWITCHES, CAPTURABLE, DECAY, DECOUPLED, TENSOR),
    "Adamax": (*SWITCHES, CAPTURABLE, DECAY, TENSOR),
    "Adagrad": (*SWITCHES, FUSED, DECAY, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, TENSOR),
    "Adadelta": (*SWITCHES, CAPTURABLE, DECAY, TENSOR),
    "RMSprop": (
        *SWITCHES, CAPTURABLE, DECAY, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True}, TENSOR,
    ),
    "Rprop": (*SWITCHES, CAPTURABLE, {"etas": (0.4, 1.3)}, TENSOR),
    "ASGD": (*SWITCHES, CAPTURABLE, DECAY, {"t0": 2.0, "lambd": 0.01}, TENSOR),
    "Adafactor": ({"foreach": False}, {"foreach": True}, {"maximize": True}, DECAY, TENSOR),
    "Muon": ({}, {"nesterov": False}, {"weight_decay": 0.0}, {"adjust_lr_fn": "match_rms_adamw"}),
    "SparseAdam": ({}, {"maximize": True}),
    "LBFGS": ({"max_iter": 3}, {"max_iter": 3, "history_size": 2}, {"max_iter": 3, "line_search_fn": "strong_wolfe"}),
}  # fmt: skip
PROGRAMS = {"Muon": "matrices", "SparseAdam": "sparse", "LBFGS": "closure"}
"""Where the plain model and step will not do."""


def exported() -> list[str]:
    """Every optimizer that `torch.optim` has."""
    found = vars(torch.optim).items()
    base = torch.optim.Optimizer
    return sorted(
        name for name, each in found if isinstance(each, type) and issubclass(each, base) and each is not base
    )


def torch_rows() -> list[Row]:
    """One row for each; a class without flags of its own, such as a new one, has a row as it is."""
    return [
        Row("torch", shown(name, options), f"torch.optim.{name}", options, program(name, options))
        for name in exported()
        for options in FLAGS.get(name, ({},))
    ]


def program(name: str, options: dict[str, Any]) -> str:
    """How it is built."""
    return "differentiable" if "differentiable" in options else PROGRAMS.get(name, "dense")


def shown(name: str, options: dict[str, Any], rate: bool = False) -> str:
    """The label of a class with its options; a learning rate that is a plain number only if asked for."""
    told = {key: value for key, value in options.items() if rate or key != "lr" or isinstance(value, str)}
    return " ".join([name, *(key if value is True else f"{key}={value}" for key, value in told.items())])
