"""The JSON schema of config files, for editors and for checks outside of this program."""

import json
import sys
from typing import Any

from dfshield.options import StageOptions
from dfshield.planning.choices import BASE, BASED, NO_ENTRY, OPTIONS, VOCABULARIES
from dfshield.planning.config import Config
from dfshield.planning.stages import sections
from dfshield.registry import DEFENCES

LAYERS = ("Config", "DatasetConfig", "HardenConfig", "StageOverrides")
"""Parts of a config that hold options by stage."""


def run() -> None:
    """Print the schema."""
    sys.stdout.write(schema_text())


def schema_text() -> str:
    """The schema generated from the option classes; options of an entry are typed by the entry's own class.

    Rules over several options, as that `images` is a multiple of `batch`, are checked by the program alone.
    """
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    parts = definitions | {"Config": schema}
    for stage, options in sections().items():
        definitions[f"section-{stage}"] = _section(definitions, options)
        for name in LAYERS:
            _refer(parts[name]["properties"], stage, f"section-{stage}")
    for vocabulary, stages in VOCABULARIES.items():
        choices = [choice for stage in stages for choice in _choices(definitions, stage)]
        definitions[f"entry-{vocabulary}"] = {"anyOf": [*choices, {"type": "null"}]}
        by_name = schema["properties"][vocabulary]["patternProperties"]
        for pattern in by_name:
            by_name[pattern] = {"$ref": f"#/$defs/entry-{vocabulary}"}
    for key, vocabulary in (("by_source", "sources"), ("by_recipe", "recipes"), ("by_protocol", "protocols")):
        classes = {c.__name__: c for stage in VOCABULARIES[vocabulary] for c in _classes(OPTIONS[stage])}
        for options in classes.values():
            _define(definitions, options)
        references = [{"$ref": f"#/$defs/{name}"} for name in classes]
        definitions["DatasetConfig"]["properties"][key]["additionalProperties"] = {"anyOf": references}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _classes(options: type[StageOptions] | None) -> list[type[StageOptions]]:
    """The classes of a stage's entries; the stage's own where it has none."""
    if options is None:
        return []
    if options.entries is None:
        return [options]
    return list(dict.fromkeys(options.class_for(name) for name in options.entries[1]))


def _define(definitions: dict[str, Any], options: type[StageOptions]) -> dict[str, Any]:
    if options.__name__ not in definitions:
        definitions[options.__name__] = options.model_json_schema()
    found: dict[str, Any] = definitions[options.__name__]
    return found


def _section(definitions: dict[str, Any], options: type[StageOptions]) -> dict[str, Any]:
    """A stage's section: common options, and options of single entries by their names."""
    own = dict(_define(definitions, options)["properties"])
    for name in options.entries[1] if options.entries else ():
        chosen = options.class_for(name)
        _define(definitions, chosen)
        own[name] = {"$ref": f"#/$defs/{chosen.__name__}"}
    return {"type": "object", "additionalProperties": False, "properties": own}


def _choices(definitions: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """The forms of an entry of a vocabulary: the stage with what it does, and the options of that."""
    options = OPTIONS[stage]
    if options is None or options.entries is None:
        field, known = NO_ENTRY[stage]
        own = {k: v for k, v in _define(definitions, options)["properties"].items() if k != field} if options else {}
        return [_form(stage, list(known), own)]
    by_class: dict[type[StageOptions], list[str]] = {}
    for name in options.entries[1]:
        by_class.setdefault(options.class_for(name), []).append(name)
    field, found = options.entries[0], []
    for chosen, names in by_class.items():
        own = {k: v for k, v in _define(definitions, chosen)["properties"].items() if k != field}
        based = [
            name for name in names if stage in ("augment", "detect") or (stage == "defend" and DEFENCES[name].fitted)
        ]
        if based:
            own[BASE] = {"type": "string", "description": BASED[stage]}
        found.append(_form(stage, names, own))
    return found


def _form(stage: str, names: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [stage],
        "properties": {stage: {"enum": names}} | properties,
    }


def _refer(holder: dict[str, Any], key: str, definition: str) -> None:
    """Replace the free-form object ``holder[key]`` by a reference to a definition."""
    kept = {name: holder[key][name] for name in ("description", "default") if name in holder[key]}
    holder[key] = kept | {"$ref": f"#/$defs/{definition}"}
