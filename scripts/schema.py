"""The JSON schemas of recipes and studies, by which editors complete their YAML: python scripts/schema.py writes them."""

import json
from pathlib import Path
from typing import Any

from glyphlm.base.outputs import write_atomic
from glyphlm.cli.parser import Parser
from glyphlm.experiments.recipe import GrowthRecipe
from glyphlm.studies.settings import Study

FOLDER = Path(__file__).parents[1] / "recipes"
KINDS = {"recipe": GrowthRecipe, "study": Study}


def schema_text(name: str) -> str:
    """The schema of a kind of file, as jsonargparse makes it, with profiles."""
    parser = Parser.of(name, f"A {name} of GlyphLM.", "")
    parser.add_class_arguments(KINDS[name])
    schema = _without_links(json.loads(parser.get_completion_script("jsonschema")))
    part = {key: value for key, value in schema.items() if key not in ("$schema", "required")}
    what = "Parts that replace the values above, by name."
    profiles = {"type": "object", "description": what, "additionalProperties": part}
    schema["properties"] = schema["properties"] | {"profiles": profiles}
    return json.dumps(schema, ensure_ascii=False, indent=1) + "\n"


def _without_links(value: Any) -> Any:
    """jsonargparse lets every part name a schema of its own; our reader refuses that key."""
    if isinstance(value, list):
        return [_without_links(part) for part in value]
    if not isinstance(value, dict):
        return value
    link = isinstance(value.get("$schema"), dict)
    return {key: _without_links(part) for key, part in value.items() if not (link and key == "$schema")}


if __name__ == "__main__":
    for kind in KINDS:
        write_atomic(FOLDER / f"{kind}.schema.json", schema_text(kind))
