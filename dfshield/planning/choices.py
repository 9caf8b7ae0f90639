"""The four vocabularies of a config in one form: training sets, recipes, protocols, defences.

An entry is a mapping whose first key is the stage, the key's value what the stage does, the rest its options:
``{train: trades, aggregate: 1}``. Built-in entries are in config/defaults.yaml and merged by name.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.threat import check_threat, parse_threat
from dfshield.core.validation import check_keys
from dfshield.options import StageOptions
from dfshield.planning.stages import STAGES
from dfshield.registry.attacks import EVERYWHERE

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "sources": ("synthesize", "generate", "augment", "public", "export"),
    "recipes": ("train", "cotrain"),
    "protocols": ("attack",),
    "defences": ("defend", "detect"),
}
"""The vocabularies and the stages that their entries may be of."""
OPTIONS: dict[str, type[StageOptions] | None] = {name: stage.options for name, stage in STAGES.items()}
"""Options by stage."""
NO_ENTRY: dict[str, tuple[str, tuple[str, ...]]] = {
    "public": ("dataset", tuple(registry.DATASETS)),
    "export": ("split", ("train",)),
}
"""Stages whose first key names no registry entry with options: the field that it stands for, and its values."""
OLD_KEYS = ("kind", "synthesis", "generation", "augmentation", "loss", "method", "targets")
"""Keys of entries before they had one form."""
MIXTURE = "mixture"
"""The defence whose figures and file come with a hardened model that is to keep its accuracy."""
SURROGATE, TEACHER = "surrogate", "teacher"
"""The key of a protocol whose attack is crafted on another classifier, and its value without a say."""
BASE = "base"
"""The key of an augmented training set that names what it is made of, and of a defence: what it is fitted on."""
BASED = {
    "augment": "the training set that it is made of",
    **dict.fromkeys(
        ("defend", "detect"),
        "the training set that it is fitted on; without it the student's own, or dss where there is none",
    ),
}
"""Stages whose entries may have it, and what it says there."""


ELSEWHERE = {
    "seed": "seeds:",
    "threat": "threat: of the data set or model, or threats: of a table",
    "split": "split: of the config",
    **dict.fromkeys(("distribution", "sigma"), "defences: {NAME: {defend: smoothing}}, the defence that is certified"),
}
"""Options with a config key of their own. Inside a stage's section they would be overridden silently."""
ELSEWHERE_BY_STAGE = {
    **dict.fromkeys(("attack", "detect", "landscape"), ("seed", "threat", "split")),
    **dict.fromkeys(("train", "cotrain"), ("seed", "threat")),
    "certify": ("seed", "split", "distribution", "sigma"),
}


@dataclass(frozen=True)
class Choice:
    """One entry of a vocabulary."""

    stage: str
    name: str
    """What the stage does: a registry entry, the other data set, the split."""
    options: Mapping[str, Any]
    """Its options, with the field that names the entry."""
    base: str | None = None
    """The training set that an augmented one is made of, or that a defence is fitted on."""
    threat: str = ""
    """A protocol's own threat model, such as ``linf:10/255``; empty where it is the table's."""
    surrogate: str = ""
    """The classifier that a protocol's attack is crafted on, ``teacher`` or ``SOURCE/RECIPE``; empty where it needs
    none."""

    @property
    def options_class(self) -> type[StageOptions] | None:
        """The class of its options; None for a stage without."""
        base = OPTIONS[self.stage]
        return base.class_for(self.name) if base else None


def parse(value: Any, vocabulary: str, where: str) -> Choice:
    """The entry that a config states at `where`; raises ValueError with the form that is meant."""
    stages = VOCABULARIES[vocabulary]
    example = f"write {{{stages[0]}: NAME, option: value}}" + (f" or {', '.join(stages[1:])}" if stages[1:] else "")
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be a mapping; {example}")
    given = [key for key in value if key in stages]
    if len(given) != 1:
        old = [str(key) for key in value if key in OLD_KEYS]
        why = f"{old[0]} is the old form" if old else f"its first key is one of {', '.join(stages)}"
        raise ValueError(f"{where}: {why}; {example}")
    (stage,) = given
    name, rest = value[stage], {key: option for key, option in value.items() if key != stage}
    base_options = OPTIONS[stage]
    field, known = NO_ENTRY.get(stage, ("", ()))
    if base_options is not None and base_options.entries is not None:
        field, known = base_options.entries[0], tuple(base_options.entries[1])
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{where}.{stage}: {name!r} is not known; {hint}")
    base, threat, surrogate = rest.pop(BASE, None) if stage in BASED else None, "", ""
    if stage == "augment" and not isinstance(base, str):
        raise ValueError(f"{where}: base is missing; an augmented training set needs the one that it is made of")
    if stage == "defend" and base is not None and not registry.DEFENCES[str(name)].fitted:
        raise ValueError(f"{where}.{BASE}: defence {name} has nothing to fit; take it out")
    if stage == "attack":
        threat = str(rest.pop("threat", ""))
        try:
            threat = check_threat(threat) if threat else ""
        except ValueError as error:
            raise ValueError(f"{where}.threat: {error}") from None
        if registry.ATTACKS[str(name)].replaces:
            if threat and parse_threat(threat) != parse_threat(EVERYWHERE):
                raise ValueError(f"{where}.threat: attack {name} is bounded by no ε; take it out")
            threat = EVERYWHERE
        surrogate = _surrogate(str(name), rest, where)
    if field in rest:
        raise ValueError(f"{where}.{field}: is said by {stage}: already; take it out")
    choice = Choice(stage, str(name), rest | ({field: str(name)} if base_options else {}), base, threat, surrogate)
    if base_options is None:
        if rest:
            raise ValueError(f"{where}: {stage} has no options; take out {', '.join(map(str, rest))}")
        return choice
    check_keys(dict(choice.options), base_options.class_for(choice.name), where)
    return choice


def _surrogate(attack: str, rest: dict[str, Any], where: str) -> str:
    """Take the surrogate out of a protocol's options; raises ValueError for one that its attack has no use for."""
    needed, given = SURROGATE in registry.ATTACKS[attack].needs, rest.pop(SURROGATE, None)
    if given is not None and not needed:
        raise ValueError(f"{where}.{SURROGATE}: attack {attack} is crafted on the attacked model itself; take it out")
    if given is not None and given != TEACHER and len(str(given).split("/")) != 2:
        raise ValueError(f"{where}.{SURROGATE}: {given!r} is neither {TEACHER} nor SOURCE/RECIPE, such as dss/std")
    return str(given or TEACHER) if needed else ""


def merged(vocabulary: str, given: Mapping[str, Any], built_in: Mapping[str, Any]) -> dict[str, Choice]:
    """The entries in force: the built-in ones and the config's own by name; null takes one out. Raises ValueError."""
    if "none" in given:
        raise ValueError(f"{vocabulary}.none: this name stands for the teacher itself, as it is; choose another")
    for name, value in given.items():
        if value is None and name not in built_in:
            raise ValueError(f"{vocabulary}.{name}: null takes out a built-in entry, and there is none of this name")
    together = {**built_in, **given}
    return {
        name: parse(value, vocabulary, f"{vocabulary}.{name}") for name, value in together.items() if value is not None
    }


def check_mixture(choices: Mapping[str, Mapping[str, Choice]], where: str) -> None:
    """Raise ValueError, at `where` that needs it, if `MIXTURE` is taken out, something else, or fitted on real data."""
    kept = choices["defences"].get(MIXTURE)
    real = [name for name, choice in choices["sources"].items() if choice.stage in ("export", "public")]
    if kept is None or kept.name != MIXTURE or kept.base in real:
        raise ValueError(f"{where}: needs the defence {MIXTURE!r}, on a synthetic set; defences: has it otherwise")


def check_section(values: Mapping[str, Any], stage: str, where: str) -> None:
    """Refuse what a stage's section of a config may not hold.

    It holds options that all entries of the stage have and, by the names of entries, options of one entry alone:
    ``train: {epochs: 26, dfshield: {lambda1: 3}}``. Raises ValueError naming the key and where it belongs.
    """
    options = OPTIONS[stage]
    assert options is not None, stage
    known = options.entries[1] if options.entries else {}
    said = options.entries[0] if options.entries else NO_ENTRY.get(stage, ("",))[0]
    if said in values:
        vocabulary = next(name for name, stages in VOCABULARIES.items() if stage in stages)
        raise ValueError(f"{where}.{said}: cannot be set here; an entry under {vocabulary}: says it, {{{stage}: NAME}}")
    common = {key: value for key, value in values.items() if key not in known}
    for key in common:
        owners = [name for name in known if key in options.class_for(name).model_fields]
        if key not in options.model_fields and owners:
            own = f"{stage}: {{{owners[0]}: {{{key}: …}}}}"
            raise ValueError(f"{where}.{key}: is an option of {', '.join(owners)} alone; write {own}")
    check_keys(common, options, where)
    for name in values.keys() & known.keys():
        if not isinstance(values[name], Mapping):
            raise ValueError(f"{where}.{name}: must be a mapping of the options of {name}")
        check_keys(dict(values[name]), options.class_for(name), f"{where}.{name}")


def refuse_misplaced(options: Mapping[str, Any], stage: str, where: str) -> None:
    """Raise ValueError for an option in a stage's section that has a config key of its own."""
    for key in ELSEWHERE_BY_STAGE.get(stage, ("seed",)):
        if key in options:
            raise ValueError(f"{where}.{key}: cannot be set here; use {ELSEWHERE[key]}")


def layer(section: Mapping[str, Any], stage: str, entry: str) -> dict[str, Any]:
    """What a stage's section says to the jobs of one entry: common options, then the entry's own."""
    options = OPTIONS[stage]
    known: Iterable[str] = options.entries[1] if options and options.entries else ()
    common = {key: value for key, value in section.items() if key not in known}
    return common | dict(section.get(entry, {}))


def read_defaults(path: Path) -> dict[str, dict[str, Any]]:
    """The built-in entries by vocabulary; raises InputError for a file that is not of this form."""
    values = read_yaml(path)
    if not isinstance(values, dict) or values.keys() != VOCABULARIES.keys():
        raise InputError(f"{path}: must hold {', '.join(VOCABULARIES)}, each a mapping of names to entries")
    return {name: dict(entries) for name, entries in values.items()}
