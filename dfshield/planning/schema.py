"""The JSON schema of config files, for editors and for checks outside of this program."""

import json
from typing import Any

from dfshield.options import STAGES
from dfshield.planning.config import Config

LAYERS = ("Config", "DatasetConfig", "HardenConfig", "StageOverrides")
"""Parts of a config that hold options by stage."""


def schema_text() -> str:
    """The schema generated from the option classes; options of a stage are typed by the stage's own class.

    Rules over several options, as that `images` is a multiple of `batch`, are checked by the program alone.
    """
    schema = Config.model_json_schema()
    parts = schema["$defs"] | {"Config": schema}
    for options in STAGES.values():
        schema["$defs"][options.__name__] = options.model_json_schema()
    for name in LAYERS:
        for stage in STAGES:
            _refer(parts[name]["properties"], stage, stage)
    for stage in ("synthesis", "generation"):
        _refer(parts["SourceConfig"]["properties"], stage, stage)
    _refer(parts["DatasetConfig"]["properties"]["by_source"], "additionalProperties", "synthesis", "generation")
    _refer(parts["DatasetConfig"]["properties"]["by_recipe"], "additionalProperties", "training", "cotraining")
    _refer(parts["DatasetConfig"]["properties"]["by_protocol"], "additionalProperties", "attack")
    by_name = parts["Config"]["properties"]["recipes"]["patternProperties"]
    for pattern in by_name:
        _refer(by_name, pattern, "training", "cotraining")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _refer(holder: dict[str, Any], key: str, *stages: str) -> None:
    """Replace the free-form object ``holder[key]`` by a reference to the options of one of `stages`."""
    references = [{"$ref": f"#/$defs/{STAGES[stage].__name__}"} for stage in stages]
    reference = references[0] if len(references) == 1 else {"anyOf": references}
    holder[key] = {name: holder[key][name] for name in ("description", "default") if name in holder[key]} | reference
