"""YAML that means one thing: what readers of YAML 1.1 and 1.2 read differently, or lose in silence, is refused.

PyYAML reads ``seeds: [010]`` as 8, ``no:`` as a key False and ``1:30`` as 90. Of a key that is given twice it keeps the
last value. Merge keys (``<<``) and anchors are read as PyYAML does.
"""

import re
from typing import Any

import yaml

LARGEST = 100_000
"""Nodes of a document, aliases counted as often as they are used: the shipped tables have some thousand."""
DEEPEST = 60
"""Levels of nesting."""
AMBIGUOUS = (
    (re.compile(r"yes|no|on|off", re.I), "a truth value or a text", "write true or false, or quote a text"),
    (re.compile(r"[-+]?0[0-9_]+"), "octal, decimal or a text", "write it without the leading zero, or quote a text"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "a number to base 60 or a text", "quote a text"),
    (re.compile(r"\d{4}-\d\d?-\d\d?([Tt ].*)?"), "a date or a text", "quote a text"),
)
"""Plain scalars that are read in several ways: pattern, readings, remedy."""


class StrictError(yaml.YAMLError):
    """A document that is YAML and is refused; the message is one line."""


def load(text: str) -> Any:
    """What a YAML document holds; raises yaml.YAMLError for what is none, or is ambiguous, too large or too deep."""
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    if len(text) > 50 * LARGEST:
        raise StrictError(f"too large for a config ({len(text)} characters)")
    depth = 0
    for event in yaml.parse(text, kind):  # before nodes are made: that recurses, in C without a limit
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            assert event.start_mark is not None
            raise StrictError(f"line {event.start_mark.line + 1}: nested more than {DEEPEST} levels deep")
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, (), {}, [])
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `load` would refuse without quotes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    quoted = any(pattern.fullmatch(value) for pattern, _, _ in AMBIGUOUS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if quoted else None)


_Dumper.add_representer(str, _text)


def dump(values: Any) -> str:
    """Plain values as YAML that `load` reads as the same values, keys in their order."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _check(node: yaml.Node, where: tuple[str, ...], sizes: dict[int, int], above: list[int]) -> int:
    """Refuse what is ambiguous in a node and below; returns how many nodes it stands for."""
    own = id(node)
    if own in sizes:
        return sizes[own]
    if own in above:
        raise StrictError(f"{_place(node, where)}an alias of itself; write its value out")
    if len(above) > DEEPEST:  # by aliases
        raise StrictError(f"{_place(node, where[:3])}nested more than {DEEPEST} levels deep")
    size = 1
    above.append(own)
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            size += _check(item, (*where, str(index)), sizes, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = _key(key, where)
            line = key.start_mark.line + 1
            if name in seen and name != "<<":
                place = ".".join((*where, name))
                raise StrictError(
                    f"{place}: is given twice, in lines {seen[name]} and {line}, and only the last would count; "
                    "take one out"
                )
            seen[name] = line
            size += 1 + _check(value, (*where, name), sizes, above)
    above.pop()
    if size > LARGEST:
        raise StrictError(f"{_place(node, where)}more than {LARGEST} values, aliases written out")
    sizes[own] = size
    return size


def _key(node: yaml.Node, where: tuple[str, ...]) -> str:
    """The name that a key is; refuses keys that are no texts."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:merge":
            return "<<"
        _check_scalar(node, where)
        if node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
    shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise StrictError(f"{_place(node, where)}the key {shown or 'null'} is no text; put it in quotes")


def _check_scalar(node: yaml.ScalarNode, where: tuple[str, ...]) -> None:
    if node.style:  # quoted, or a block of text
        return
    for pattern, readings, remedy in AMBIGUOUS:
        if pattern.fullmatch(node.value):
            raise StrictError(f"{_place(node, where)}{node.value} can be read as {readings}; {remedy}")


def _place(node: yaml.Node, where: tuple[str, ...]) -> str:
    keys = f"{'.'.join(where)}: " if where else ""
    return f"line {node.start_mark.line + 1}: {keys}"
