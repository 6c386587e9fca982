"""Write docs/schema/optstate-1.json from the types that read manifests: `python -m tools.schema`."""

from __future__ import annotations

import json
from pathlib import Path

from optstate.formats.ours.manifest import schema

TARGET = Path(__file__).parents[1] / "docs" / "schema" / "optstate-1.json"

if __name__ == "__main__":
    TARGET.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
