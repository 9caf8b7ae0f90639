"""What MkDocs does besides rendering `docs/`: files from outside of it, links to the repository, and the reference.

The reference is written at each build from the tables that the program itself reads, so it cannot be out of date.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from dfshield import registry
from dfshield.core.validation import Options
from dfshield.models.probe import CHECKS
from dfshield.planning.commands import ARGUMENTS, TOOL_OPTIONS, TOOLS, Argument
from dfshield.planning.config import Config, DatasetConfig, EvaluationConfig, HardenConfig, StageOverrides
from dfshield.planning.stages import STAGES, Stage
from dfshield.planning.tables import load_tables
from dfshield.registry import Entry

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/cifar10_resnet20/README.md": "example-cifar10.md",
}
"""Files of the repository that are pages of the site, and where."""
TABLES = ROOT / "config/tables.yaml"
API = ("harden.harden", "harden.Hardened", "attack.attack", "load.load")
"""What Python programs call, below ``dfshield.api``."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
"""A link to another file: its text, path and anchor."""
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "max_length": "at most"}
"""Limits of an option's value, and how they are printed."""
SAID_BY = {
    "dfshield/api/harden.py": "reference/python.md",
    "dfshield/planning/config.py": "reference/config.md",
    "dfshield/models/probe.py": "reference/network.md",
    "dfshield/planning/commands.py": "reference/tools.md",
    "config/tables.yaml": "reference/tables.md",
}
"""Files that a page of the reference is made of, besides that of stages and registries: a link to it leads there."""


def registries() -> dict[str, dict[str, Entry]]:
    """The registries of named choices by the name of their table, such as ``ATTACKS``."""
    tables = {name: getattr(registry, name) for name in registry.__all__}
    return {
        name: table
        for name, table in tables.items()
        if isinstance(table, dict) and table and all(isinstance(entry, Entry) for entry in table.values())
    }


# Text


def cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def rows(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table; empty where there is no line."""
    body = [f"| {' | '.join(line)} |" for line in lines]
    head = list(titles)
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *body, "", ""]) if body else ""


def kind(annotation: Any) -> str:
    """What values a type allows, for a reader of configs."""
    if get_origin(annotation) is Annotated:
        base, *facts = get_args(annotation)
        return f"{kind(base)}{limits(facts)}"
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        named = next((name for name, table in registries().items() if tuple(table) == choices), "")
        return (
            f"a name of [{named}](../registries/{named.lower()}.md)" if named else ", ".join(f"`{c}`" for c in choices)
        )
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("none" if part is type(None) else kind(part) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return f"list of {kind(parts[0])}" if parts else "list"
    if get_origin(annotation) is dict or annotation is dict:
        return "mapping"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def limits(facts: Iterable[Any]) -> str:
    """The limits among the facts of a field, such as `` ≥ 1``."""
    inner = [fact for info in facts for fact in (info.metadata if isinstance(info, FieldInfo) else [info])]
    found = [f"{sign} {getattr(fact, key)}" for fact in inner for key, sign in BOUNDS.items() if hasattr(fact, key)]
    return f" {' and '.join(found)}" if found else ""


def default(field: FieldInfo) -> str:
    """A field's default as a config has it."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return "`''`" if value == "" else f"`{value}`"


def option_rows(options: type[Options], but: type[Options] | None = None) -> str:
    """The options of a class as a table: all of them, or those that are not `but`'s or differ in their default."""
    texts, lines = options.help_texts(), []
    for name, field in options.model_fields.items():
        known = but.model_fields.get(name) if but else None
        if known is None or (known.default, known.annotation) != (field.default, field.annotation):
            values = f"{kind(field.annotation)}{limits(field.metadata)}"
            lines.append((f"`{name}`", cell(values), default(field), cell(texts[name])))
    return rows(("option", "values", "default", "meaning"), lines)


def argument_rows(arguments: Iterable[Argument]) -> str:
    """The arguments of a command besides its options."""
    lines = [(f"`{a.name}`", "required" if a.required or a.name[0] != "-" else "", cell(a.help)) for a in arguments]
    return rows(("argument", "", "meaning"), lines)


# Pages of the reference


def stage_page(name: str, stage: Stage) -> str:
    """One stage: its command, its options, and the options of its entries."""
    text = f"# {name}\n\n`dfshield {name}`: {stage.about}.\n\n"
    facts = [
        ("code", f"`{stage.run}`"),
        ("file", f"`{stage.output}`" if stage.output else "named on the command line"),
        ("after a stop", "goes on where it was" if stage.resumes else "starts over"),
        ("asks a cluster for", f"{stage.memory_mb} MB, {stage.minutes} minutes{', a GPU' if stage.gpu else ''}"),
    ]
    text += rows(("fact", "value"), facts) + "## Arguments\n\n" + argument_rows(ARGUMENTS[name])
    if stage.options is None:
        return f"{text}It has no options.\n"
    section = f"Keys of the section `{name}:` of a config" if stage.section else "Keys of a config's choice"
    text += f"## Options\n\n{section}, and flags of the command (`attack_steps` is `--attack-steps`).\n\n"
    text += option_rows(stage.options)
    for entry_name, entry in (stage.options.entries or ("", {}))[1].items():
        own = entry.options_class(stage.options)
        if own is stage.options:
            continue
        text += f"## `{entry_name}`\n\n{entry.title}: {entry.about}. Its own options, and other defaults:\n\n"
        text += option_rows(own, stage.options)
    return text


def registry_page(name: str, table: Mapping[str, Entry]) -> str:
    """One registry: the names that a config or a flag may give."""
    module = type(next(iter(table.values()))).__module__
    lines = [(f"`{key}`", cell(e.title), cell(e.about), f"`{e.target}`") for key, e in table.items()]
    chosen = [
        f"[{stage}](../stages/{stage}.md)"
        for stage, facts in STAGES.items()
        if facts.options and any(known is table for _, known in [facts.options.entries or ("", None), *facts.entries])
    ]
    by = f" The stage {' and '.join(chosen)} chooses among them." if chosen else ""
    return (
        f"# {name}\n\nThe table `dfshield.registry.{name}` (entries of `{module}`).{by}\n\n"
        f"{rows(('name', 'title', 'what it is', 'code'), lines)}"
    )


def config_page() -> str:
    """All keys of a config file."""
    parts: list[tuple[str, type[Options], type[Options] | None]] = [
        ("The file", Config, StageOverrides),
        ("A data set of the grid, under `datasets:`", DatasetConfig, StageOverrides),
        ("A model of your own, under `harden:`", HardenConfig, StageOverrides),
        ("Its real images, under `evaluation:`", EvaluationConfig, None),
    ]
    stages = ", ".join(f"[`{name}`](stages/{name}.md)" for name in StageOverrides.model_fields)
    text = "# Config files\n\nAn unknown key is refused, with the nearest known one. "
    text += "`dfshield schema` prints the same as a JSON schema, for editors.\n\n"
    for title, options, but in parts:
        text += f"## {title}\n\n{option_rows(options, but)}".replace("](../", "](")
    text += "## Options of stages\n\nThe file, a data set and a model of your own may also have the sections "
    return f"{text}{stages}.\n"


def network_page() -> str:
    """What a network of the user's own is checked for."""
    first = "Before any work, a network of your own is run as the stages will run it. "
    first += "A trouble that is refused ends the first stage with one line, which begins with what was found. "
    first += "The others are said, and the run goes on.\n\n"
    refused = [(cell(name), cell(check.remedy)) for name, check in CHECKS.items() if check.refuses]
    said = [(cell(name), cell(check.remedy)) for name, check in CHECKS.items() if not check.refuses]
    text = f"# What a network is checked for\n\n{first}## Refused\n\n{rows(('trouble', 'remedy'), refused)}"
    return f"{text}## Said\n\n{rows(('trouble', 'what follows'), said)}"


def command_page() -> str:
    """The commands that are no stages."""
    text = "# Tools\n\nCommands that answer a question. Each [stage](stages/teacher.md) is a command, too.\n\n"
    for name, (about, _) in TOOLS.items():
        text += f"## `dfshield {name}`\n\n{about[0].upper()}{about[1:]}.\n\n{argument_rows(ARGUMENTS[name])}"
        text += option_rows(TOOL_OPTIONS[name]).replace("](../", "](") if name in TOOL_OPTIONS else ""
    return text


def tables_page() -> str:
    """Every table that can be asked for, from the file that describes them."""
    text = (
        "# Tables\n\n`snakemake --cores all results/NAME.csv` makes a table of this name, as CSV, Markdown and LaTeX. "
    )
    text += "A config may name tables of its own.\n\n"
    lines = []
    for name, spec in load_tables(TABLES).items():
        methods = ", ".join(dict.fromkeys(row.method for row in spec.rows))
        metrics = (
            ", ".join(registry.metric(m).title if m in registry.METRICS else m for m in spec.metrics) or "formulas"
        )
        lines.append((f"`{name}`", cell(spec.title), cell(methods), cell(metrics)))
    return text + rows(("name", "what it is", "rows", "columns"), lines)


def api_page() -> str:
    """The Python interface, from its docstrings."""
    text = "# Python\n\n`import dfshield` offers `harden`, `attack`, `load` and `InputError`.\n\n"
    return text + "".join(f"::: dfshield.api.{name}\n\n" for name in API)


def reference() -> dict[str, dict[str, Callable[[], str]]]:
    """Pages of the reference: heading of the navigation to path to text."""
    return {
        "": {
            "reference/python.md": api_page,
            "reference/config.md": config_page,
            "reference/network.md": network_page,
            "reference/tools.md": command_page,
            "reference/tables.md": tables_page,
        },
        "Stages": {f"reference/stages/{name}.md": partial(stage_page, name, stage) for name, stage in STAGES.items()},
        "Registries": {
            f"reference/registries/{name.lower()}.md": partial(registry_page, name, table)
            for name, table in registries().items()
        },
    }


def by_code() -> dict[str, str]:
    """The page of the reference that says what a file of the program does."""
    stages = {f"{s.run.partition(':')[0].replace('.', '/')}.py": f"reference/stages/{n}.md" for n, s in STAGES.items()}
    tables = {f"dfshield/registry/{n.lower()}.py": f"reference/registries/{n.lower()}.md" for n in registries()}
    return stages | tables | SAID_BY


# Pages from elsewhere


def as_table(markdown: str) -> str:
    """The picture of the rules as a table: what draws it in a browser would come from the network."""

    def table(found: re.Match[str]) -> str:
        edges: dict[str, list[str]] = {}
        for before, after in re.findall(r"^ +(\w+) --> (\w+)$", found[1], re.MULTILINE):
            edges.setdefault(before, []).append(f"`{after}`")
        return rows(("rule", "what waits for it"), ((f"`{rule}`", ", ".join(then)) for rule, then in edges.items()))

    return re.sub(r"```mermaid\n(.*?)```", table, markdown, flags=re.DOTALL)


def origin(page: str) -> str:
    """Where a page's file is in the repository."""
    return next((path for path, place in OUTSIDE.items() if place == page), f"docs/{page}")


def relinked(markdown: str, page: str) -> str:
    """The text of `page` with links to files of the repository as links of the site.

    A link to code leads to what the reference says of it, or becomes its text. A link to nothing stays, for MkDocs to
    find.
    """
    places = OUTSIDE | by_code()

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin(page)), path))
        if target in places or target.startswith("docs/"):
            place = places.get(target, target.removeprefix("docs/"))
            return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"
        return text if (ROOT / target).exists() else found[0]

    fences = FENCE.findall(markdown)
    parts = [LINK.sub(link, part) for part in FENCE.split(markdown)]
    return "".join(part + fence for part, fence in zip(parts, [*fences, ""], strict=True))


# What MkDocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference into the navigation."""
    pages: list[Any] = []
    for heading, places in reference().items():
        pages += [{heading: list(places)}] if heading else list(places)
    for item in config.nav or []:
        if "Reference" in item:
            item["Reference"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside of `docs/` and the pages of the reference."""
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    for places in reference().values():
        for place, text in places.items():
            files.append(File.generated(config, place, content=text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Text of a page before it is rendered."""
    place = page.file.src_uri
    return markdown if place.startswith("reference/") else as_table(relinked(markdown, place))
