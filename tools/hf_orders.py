"""Write the table of `optstate.formats.layouts.hf_orders`: what stands in which order in every model of transformers.

    python -m tools.hf_orders [MODEL_TYPE...]

builds each model that the installed transformers has, without weights, and adds what it finds to the table; those that
are named also with each of their options switched on. What other versions had stays: run it with each of them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from optstate.formats.layouts.hf_orders import (
    CURRENT,
    NUMBERED,
    TABLE,
    Row,
    every_kind,
    in_model_order,
    levels_of,
    rows,
    tree_of,
    walk,
)

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "num_experts", "num_local_experts", "n_routed_experts",
)  # fmt: skip
_PER_LAYER = ("layer_types", "mlp_layer_types")
_OPTIONS: tuple[dict[str, Any], ...] = (
    {"feed_forward_proj": "gated-gelu"},
    {"is_decoder": True, "add_cross_attention": True},
    {"word_embed_proj_dim": 8},
    {"tie_word_embeddings": False},
)


def classes() -> dict[str, list[str]]:
    """The names of the model classes of each model type."""
    from transformers.models.auto import modeling_auto

    found: dict[str, dict[str, None]] = {}
    for name, mapping in vars(modeling_auto).items():
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES"):
            for kind, named in mapping.items():
                each = (named,) if isinstance(named, str) else named
                found.setdefault(kind, {}).update(dict.fromkeys(one for one in each if isinstance(one, str)))
    return {kind: list(names) for kind, names in sorted(found.items())}


def orders(kind: str, names: Iterable[str], *, thorough: bool) -> Iterator[list[str]]:
    """The parameters, in the model's order, of each class of a model type, with each of its options if `thorough`."""
    for name in names:
        for options in ({}, *_OPTIONS, *(_switches(kind) if thorough else ())):
            try:
                yield parameters(kind, name, options)
            except Exception as error:  # noqa: BLE001  # options that exclude each other, classes that need a library
                if not options:
                    print(f"{kind}, {name}: {type(error).__name__}", file=sys.stderr)
                    break


def parameters(kind: str, name: str, options: dict[str, Any]) -> list[str]:
    """What a small model calls its parameters in a file, in its order. Raises whatever the model does."""
    import torch
    import transformers

    default = _config(kind)
    for option in options:
        getattr(default, option)
    config = _config(kind, **options)
    _shrink(config, 0)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    return as_saved(model, [name for name, _ in model.named_parameters()])


def as_saved(model: Any, names: Iterable[str]) -> list[str]:
    """The names under which transformers 5 saves parameters: those of older versions, where modules were renamed.

    The experts of a layer that are one parameter in memory, and many in a file, keep the name that they have in memory.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            PrefixChange,
            WeightRenaming,
            apply_renamings,
        )
    except ImportError:  # before version 5 a name was a name
        return list(names)
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    reverse = [each.reverse_transform() for each in conversions[::-1] if not isinstance(each, PrefixChange)]
    return [apply_renamings(name, [each for each in reverse if isinstance(each, WeightRenaming)]) for name in names]


def _config(kind: str, **options: Any) -> Any:
    import transformers

    return transformers.CONFIG_MAPPING[kind](**options)


def _switches(kind: str) -> list[dict[str, Any]]:
    """Each option of a configuration that is off, switched on."""
    try:
        options = vars(_config(kind))
    except Exception:  # noqa: BLE001  # a configuration that has no defaults
        return []
    return [{key: True} for key, value in options.items() if value is False and not key.startswith("_")]


def _shrink(config: Any, depth: int) -> None:
    for key, value in list(vars(config).items()):
        if key in _COUNTS and type(value) is int:
            setattr(config, key, min(value, 2))
        elif key in _PER_LAYER and isinstance(value, list):
            setattr(config, key, value[:2])
        elif hasattr(value, "to_dict") and depth < 3:
            _shrink(value, depth + 1)


def rows_of(names: Sequence[str]) -> set[Row]:
    """What stands in each module, in order, if that is enough to tell the order of all names; else nothing."""
    orders: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
    for module, parts in levels_of("", tree_of(names)):
        if orders.setdefault((module, frozenset(parts)), parts) != parts:
            return set()
    if list(walk("", tree_of(names), orders)) != list(names):
        return set()
    return {(module, parts) for (module, _), parts in orders.items() if parts != (NUMBERED,) and parts not in _PLAIN}


_PLAIN = (("weight",), ("bias",), ("weight", "bias"))


def longest(found: set[Row]) -> set[Row]:
    """Without rows that are part of a longer one."""
    return {
        (module, parts)
        for module, parts in found
        if not any(row != (module, parts) and _is_in((module, parts), row) for row in found)
    }


def _within(parts: Sequence[str], longer: Sequence[str]) -> bool:
    rest = iter(longer)
    return all(part in rest for part in parts)


def main(kinds: Sequence[str]) -> None:
    """Add what the installed transformers has to the table."""
    import transformers

    warnings.simplefilter("ignore")
    version = transformers.__version__
    suffix = "" if int(version.partition(".")[0]) >= CURRENT else f"@{version.partition('.')[0]}"
    found = read_table()
    seen = {
        kind: list(orders(kind, names, thorough=bool(kinds)))
        for kind, names in classes().items()
        if not kinds or kind in kinds
    }
    for kind, each in seen.items():
        new = {row for names in each for row in rows_of(names)}
        if ("bias", "weight") not in {parts for _, parts in new}:  # there nothing holds everywhere
            found[kind + suffix] = longest(found.get(kind + suffix, set()) | new)
    write_table(found)
    for kind, each in seen.items():
        if any(in_model_order(sorted(names), kind, version) not in (None, names) for names in each):
            print(f"{kind}: modules of one name have different orders in it", file=sys.stderr)
            found.pop(kind + suffix, None)
    older = {kind: kind.partition("@")[0] for kind in found if "@" in kind}
    for kind, now in older.items():
        if all(any(_is_in(row, each) for each in found.get(now, ())) for row in found[kind]):
            del found[kind]  # nothing has changed since
    write_table(found)
    print(f"{len(found)} model types")


def _is_in(row: Row, other: Row) -> bool:
    return row[0] == other[0] and _within(row[1], other[1])


def read_table() -> dict[str, set[Row]]:
    """The rows of each model type, as they stand now."""
    found: dict[str, set[Row]] = {}
    for module, each in rows().items() if TABLE.exists() else ():
        for parts, kinds in each:
            for kind in kinds:
                found.setdefault(kind, set()).add((module, parts))
    return found


def write_table(found: dict[str, set[Row]]) -> None:
    """One line for each row, with the model types that have it."""
    kinds: dict[Row, list[str]] = {}
    for kind, each in sorted(found.items()):
        for row in each:
            kinds.setdefault(row, []).append(kind)
    lines = [f"{module}: {' '.join(parts)} | {' '.join(kinds[module, parts])}" for module, parts in sorted(kinds)]
    TABLE.write_text("\n".join(lines) + "\n", "utf-8")
    rows.cache_clear()
    every_kind.cache_clear()


if __name__ == "__main__":
    main(sys.argv[1:])
