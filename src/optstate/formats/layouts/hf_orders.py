"""The order of parameters in the models of transformers, which safetensors files do not keep.

A module registers its parameters and the modules in it in an order that its code fixes. `hf_orders.txt` has that order
for every model type: a row `self_attn: q_proj k_proj v_proj o_proj | llama …` says it of whatever is called `self_attn`
in a llama; `llama@4` is one that transformers 4 wrote, where that is another order. Numbered modules, `*` in a row, are
in the order of their numbers. `tools/hf_orders.py` writes the table from the models themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

# What holds an adapter's parameters in a layer, in the order in which PEFT registers them.
CONTAINERS = (
    ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("vera_lambda_b", "vera_lambda_d"),
    ("boft_R", "boft_s"),
    ("oft_R", "oft_embedding_R"),
    ("ia3_l",),
    ("ln_tuning_layers",),
    ("fourierft_spectrum",),
    ("hra_u",),
    ("trainable_tokens_delta",),
)

TABLE = Path(__file__).with_suffix(".txt")

CURRENT = 5
"""The major version of transformers whose orders are those of a model type without a version."""

NUMBERED = "*"
DEPTH = 64
"""Modules within modules; names with more of them are in no order."""

PARTS = 2_000_000
"""What is between the dots of all names together."""

LEVELS = 5_000
"""Different modules, by their names and what is in them; the largest models have a tenth of that."""

Row: TypeAlias = "tuple[str, tuple[str, ...]]"
"""The name of a module, numbers left out, "" for the model itself; and what is in it, in order."""

Tree: TypeAlias = "dict[str, Any]"
"""Names cut at their dots, level by level; a parameter is an empty dict."""

_Orders: TypeAlias = "Mapping[tuple[str, ...], frozenset[str] | None]"
"""The orders in which the same things stand, and the model types in which they do; None for all."""

_EVERYWHERE = (("weight", "bias"), *(("base_layer", *each) for each in CONTAINERS))

MAJORITY = 0.8
"""The share of models with the same modules that must have them in one order, where it is not known which model it is."""


def in_model_order(names: Sequence[str], kind: str | None = None, version: str = "") -> list[str] | None:
    """The names of a model's parameters as its `named_parameters()` has them; None where the table does not tell.

    `kind` is the model type and `version` the one of transformers that `config.json` states. Without them, the order
    is that of most models that have these modules.
    """
    dots = [name.count(".") for name in names]
    if max(dots, default=0) >= DEPTH or sum(dots) > PARTS:
        return None
    tree = tree_of(names)
    different = {(module, frozenset(parts)) for module, parts in levels_of("", tree)}
    if len(different) > LEVELS:
        return None
    levels = {level: _orders(*level) for level in different}
    chosen = _chosen(levels.values(), None if kind is None else _kinds(kind, version))
    if chosen is None:
        return None
    ordered = list(walk("", tree, dict(zip(levels, chosen, strict=True))))
    return ordered if len(ordered) == len(names) else None  # a parameter cannot be a module as well


def _chosen(levels: Collection[_Orders], kinds: frozenset[str] | None) -> list[tuple[str, ...]] | None:
    """One order for each level: the one of the model types that have all levels, and nearly all of which agree."""
    for orders in levels:
        if None not in orders.values():
            known = frozenset[str]().union(*(each or () for each in orders.values()))
            kinds = known if kinds is None else kinds & known
    if kinds is None:
        return [next(iter(orders)) for orders in levels]
    own = [[_of(kind, orders) for orders in levels] for kind in kinds]
    votes = Counter(tuple(order for (order,) in each) for each in own if all(len(one) == 1 for one in each))
    if not votes:
        return None
    (best, times), *_ = votes.most_common(1)
    return list(best) if times >= MAJORITY * len(kinds) else None


def _of(kind: str, orders: _Orders) -> list[tuple[str, ...]]:
    return [order for order, kinds in orders.items() if kinds is None or kind in kinds]


def _kinds(kind: str, version: str) -> frozenset[str]:
    """The entries for a model type: of the version that is stated, or all of them."""
    older = {number: f"{kind}@{number}" for number in range(CURRENT) if f"{kind}@{number}" in every_kind()}
    major = version.partition(".")[0]
    if not major.isdecimal() or len(major) > 4:
        return frozenset([kind, *older.values()])
    return frozenset([next((each for number, each in older.items() if number >= int(major)), kind)])


@cache
def every_kind() -> frozenset[str]:
    """The model types of the table, those of older versions with `@<version>`."""
    return frozenset[str]().union(*(kinds for each in rows().values() for _, kinds in each))


def tree_of(names: Iterable[str]) -> Tree:
    """Names, cut at their dots."""
    tree: Tree = {}
    for name in names:
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})
    return tree


def shown(part: str) -> str:
    """A part of a name as rows have it."""
    return NUMBERED if part.isdecimal() and len(part) < 10 else part


def levels_of(module: str, node: Tree) -> Iterator[Row]:
    """What stands together, in the order of the names that the tree was made of, and the name of the module it is in."""
    if node:
        yield module, tuple(dict.fromkeys(map(shown, node)))
    for part, inner in node.items():
        yield from levels_of(module if shown(part) == NUMBERED else part, inner)


def _orders(module: str, parts: frozenset[str]) -> _Orders:
    if parts == {NUMBERED}:
        return {(NUMBERED,): None}
    for order in _EVERYWHERE:
        if parts <= {*order}:
            return {tuple(part for part in order if part in parts): None}
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for order, kinds in rows().get(module, ()):
        if parts <= {*order}:
            some = tuple(part for part in order if part in parts)
            found[some] = found.get(some, frozenset()) | kinds
    return found


def walk(module: str, node: Tree, orders: Mapping[tuple[str, frozenset[str]], Sequence[str]]) -> Iterator[str]:
    """The names of a tree in the order of its levels."""
    numbered = sorted((part for part in node if shown(part) == NUMBERED), key=int)
    for key in orders[module, frozenset(map(shown, node))] if node else ():
        for part in numbered if key == NUMBERED else (key,):
            inner = node[part]
            if not inner:
                yield part
            for rest in walk(module if key == NUMBERED else part, inner, orders):
                yield f"{part}.{rest}"


@cache
def rows() -> Mapping[str, Sequence[tuple[tuple[str, ...], frozenset[str]]]]:
    """By the name of a module, "" for the model itself: what is in it, in order, and in which model types."""
    found: dict[str, list[tuple[tuple[str, ...], frozenset[str]]]] = {}
    for line in TABLE.read_text("utf-8").splitlines():
        row, _, kinds = line.partition(" | ")
        module, _, inside = row.partition(":")
        found.setdefault(module, []).append((tuple(inside.split()), frozenset(kinds.split())))
    return found
