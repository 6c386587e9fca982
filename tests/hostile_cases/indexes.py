"""Folders of Hugging Face whose index or state names what it should not, or lies about what is there."""

from __future__ import annotations

import json
from typing import Any

from tests.forged import Cases, Content, safetensors

INDEX = "model.safetensors.index.json"
SHARD = safetensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))


def folder(weight_map: Any, total: Any = 4, **shards: Content) -> dict[str, Any]:
    """A folder with an index over shards, which are called `a` and `b`."""
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode()
    return {INDEX: index, **{f"{name}.safetensors": shard for name, shard in shards.items()}}


def _trainer(**files: Any) -> dict[str, Any]:
    return {
        "trainer_state.json": b'{"global_step":3}',
        **{name.replace("__", "."): each for name, each in files.items()},
    }


LEADS_AWAY = "leads elsewhere"

CASES: Cases = {
    "104 up": (folder({"w": "../../etc/passwd"}), LEADS_AWAY),
    "104 absolute": (folder({"w": "/etc/passwd"}), LEADS_AWAY),
    "104 up, behind NUL": (folder({"w": "a.safetensors\0/../x"}), LEADS_AWAY),
    "104 the folder itself": (folder({"w": "."}), LEADS_AWAY),
    "104 no text": (folder({"w": 1}), "no index of tensors"),
    "104 a list": (folder(["w"]), "no index of tensors"),
    "104 no map": ({INDEX: b"{}"}, "no index of tensors"),
    "104 no JSON": ({INDEX: b"{"}, "is no JSON"),
    "104 nested": ({INDEX: b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}"}, "is no JSON"),
    "104 a name twice": ({INDEX: b'{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', "a.safetensors": SHARD}, "twice"),
    "104 missing": (folder({"w": "a.safetensors"}), "there is no file"),
    "104 itself": (folder({"w": INDEX}), INDEX),
    "104 in two shards": (folder({"w": "a.safetensors", "v": "b.safetensors"}, a=SHARD, b=SHARD), "in two shards"),
    "104 total that lies": (folder({"w": "a.safetensors"}, 1 << 60, a=SHARD), "and there are 4"),
    "104 total that is text": (folder({"w": "a.safetensors"}, "4", a=SHARD), ""),
    "104 shard that lacks a tensor": (folder({"w": "a.safetensors", "v": "a.safetensors"}, a=SHARD), "does not hold v"),
    "104 a million shards": (folder({str(number): f"{number}.safetensors" for number in range(100_000)}), "there is no file"),
    "104 state that is a list": ({"trainer_state.json": b"[]", "model.safetensors": SHARD}, ""),
    "104 state that is no JSON": ({"trainer_state.json": b"\xff", "model.safetensors": SHARD}, "is no text"),
    "104 step of 5,000 digits": ({"trainer_state.json": b'{"global_step":%s}' % (b"4" * 5000)}, "is no JSON"),
    "104 configuration of lists": (_trainer(config__json=b'{"model_type":["llama"]}', model__safetensors=SHARD), ""),
    "104 adapter for nothing": (
        _trainer(adapter_config__json=b'{"modules_to_save":{"a":1},"auto_mapping":[]}', adapter_model__safetensors=SHARD), "",
    ),
    "104 names of a thousand modules": (
        _trainer(model__safetensors=safetensors(b'{"%s":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' % (b"a." * 1000 + b"w"), bytes(4))), "",
    ),
    "104 a module that is a parameter": (
        _trainer(model__safetensors=safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a.b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)
        )), "",
    ),
    "104 sharding that is no JSON": (
        {"shard-00001-model-00001-of-00001.safetensors": safetensors(
            b'{"__metadata__":{"DCP_SHARDING_INFO":"{"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
        )}, "no JSON",
    ),
    "104 sharding beyond everything": (
        {"shard-00001-model-00001-of-00001.safetensors": safetensors(
            b'{"__metadata__":{"DCP_SHARDING_INFO":"{\\"w\\":{\\"saved_offsets\\":[%d]}}"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' % (1 << 62), bytes(4)
        )}, "",
    ),
}  # fmt: skip
