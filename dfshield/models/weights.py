"""Weights of a file brought into a network: by name, past what wrappers have put around the names.

A file's names count as they are if they fit. Else the weights are those names that follow one common prefix and are,
behind it, exactly the network's: ``module.`` of DataParallel, ``state_dict.model.`` of a Lightning checkpoint. Of
several such prefixes that of averaged weights (EMA, SWA) is taken, as timm does; any other choice is the user's.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfshield.core.errors import InputError, describe
from dfshield.core.progress import log
from dfshield.models.card import NOT_FINITE
from dfshield.models.formats import read_weights

INNER = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
"""Parts that ``torch.compile``, FSDP and activation checkpoints put anywhere into a name."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
"""Prefixes of averaged weights."""
BESIDE = re.compile(
    r"(.*\.)?(total_ops|total_params|num_batches_tracked)|(criterion|loss|loss_fn|loss_func)\..*"
    r"|n_averaged|num_updates|decay|epoch|step|global_step|iteration"
)
"""Names of counters and losses, which are no part of what a network computes."""
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _View(NamedTuple):
    """The tensors of a file behind one prefix."""

    prefix: str
    names: dict[str, str]
    """The file's name of each of the network's that is there."""
    extra: dict[str, str]
    """What else is there: new name to the file's name."""


def load_weights(net: nn.Module, path: Path, assign: bool = False) -> None:
    """Load the weights file `path` into `net`, and say in one line what had to be chosen, left aside or converted.

    Half and double precision become the network's type. `assign` as in `fit`. Raises InputError for what is no weights
    file, for weights of another network, and for values that are not finite or whole numbers where the network has
    floats.
    """
    where = str(path)
    content = {name: value for name, value in read_weights(Path(path)).items() if isinstance(value, Tensor)}
    own, tied = _tensors(net), tied_names(net)
    view, notes = _choose(own, content, tied, where)
    state = {name: _value(content[source], own[name], source, where) for name, source in view.names.items()}
    check_finite(state, where)
    types = {content[source].dtype for source in view.names.values()} - {value.dtype for value in own.values()}
    if types:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        notes.append(f"{names} converted to the network's type")
    aside = sorted(set(content) - set(view.names.values()))
    if aside:
        notes.append(f"left aside: {_first(aside)}")
    fit(net, state, where, assign)
    if notes:
        log(f"{path}: {'; '.join(notes)}")


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError naming the first tensor with a NaN or an infinity."""
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{where}: tensor {key!r} {NOT_FINITE}")


def tied_names(net: nn.Module) -> list[list[str]]:
    """Names of each tensor that the network has under several."""
    groups: dict[int, list[str]] = {}
    for name, value in net.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def fit(net: nn.Module, state: Mapping[str, Tensor], where: str, assign: bool = False) -> None:
    """Load `state` into `net`; raises InputError that names the first keys that are missing, unexpected, mis-shaped.

    BatchNorm's ``num_batches_tracked`` may be absent (files from before PyTorch 0.4.1), and so may further names of a
    tensor that the network has under several, as safetensors' ``save_model`` leaves them out. With `assign` the tensors
    take the place of the network's own, which may then be on the meta device.
    """
    own, tied = _tensors(net), tied_names(net)
    for names in tied:
        present = [name for name in names if name in state]
        if any(not torch.equal(state[name], state[present[0]]) for name in present[1:]):
            raise InputError(f"{where}: {' and '.join(present)} differ, but are one tensor in the model; check model")
    state = _completed(own, state, tied)
    misfit = _misfit(own, state)
    if misfit:
        raise InputError(f"{where}: {misfit}")
    values = OrderedDict((key, value.to(own[key].dtype)) for key, value in state.items())
    values._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]  # some layers ask for their version
    try:
        net.load_state_dict(values, strict=False, assign=assign)
    except Exception as error:  # a user's layers may load in a way of their own
        raise InputError(f"{where}: the network does not take the weights: {describe(error)}") from None


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if isinstance(value, Tensor)}


def _completed(own: Mapping[str, Tensor], state: Mapping[str, Tensor], tied: list[list[str]]) -> dict[str, Tensor]:
    """`state` with what a file may lack: BatchNorm's counters, and further names of a tensor that it has."""
    counters = {key: torch.zeros((), dtype=torch.int64) for key in own if key.endswith("num_batches_tracked")}
    complete = counters | dict(state)
    for names in tied:
        complete |= {name: complete[other] for other in names if other in complete for name in names}
    return complete


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """In which names and shapes `state` differs from the network's; empty where it fits."""
    other = [key for key in own if key in state and state[key].shape != own[key].shape]
    parts = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "other shape": [f"{key} is {_size(state[key])}, the model has {_size(own[key])}" for key in other],
    }
    problems = [f"{title}: {_first(names)}" for title, names in parts.items() if names]
    if not problems:
        return ""
    counted = [key for key in own if not key.endswith("num_batches_tracked")]  # a file may lack those
    fitting = sum(key in state and key not in other for key in counted)
    remedy = "check model and classes"
    sizes = {(state[key].shape[:1], own[key].shape[:1]) for key in other}
    weights = [key for key in own if own[key].ndim]
    tails_equal = all(state[key].shape[1:] == own[key].shape[1:] for key in other)
    if len(problems) == 1 and len(sizes) == 1 and tails_equal and weights[-1] in other:
        [(theirs, ours)] = sizes
        remedy = f"the file is for {theirs[0]} classes, the model has {ours[0]}: correct classes"
    return (
        f"the weights do not fit the model ({'; '.join(problems)}); {fitting} of {len(counted)} tensors fit; {remedy}"
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _value(value: Tensor, own: Tensor, name: str, where: str) -> Tensor:
    """A tensor of the file in the network's type."""
    if value.layout != torch.strided or value.is_quantized:
        raise InputError(f"{where}: {name!r} is quantised or sparse; give the plain tensors that it was made from")
    if own.is_floating_point() and value.dtype not in FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        raise InputError(
            f"{where}: {name!r} is {kind}, the model has floats (quantised weights?); give the weights it was made from"
        )
    converted = value.to(own.dtype)
    if not own.is_floating_point() and not torch.equal(converted.double(), value.double()):
        raise InputError(f"{where}: {name!r} is no whole number, as the model has it; fetch or write the file again")
    return converted


def _choose(
    own: Mapping[str, Tensor], content: Mapping[str, Tensor], tied: list[list[str]], where: str
) -> tuple[_View, list[str]]:
    """The one place in a file where the network's weights are, and what to say of the choice."""
    views: list[_View] = []
    for names, sources in _renamings(own, content):
        found = _views(names, sources)
        whole = [v for v in found if not _misfit(own, _completed(own, _state(v._replace(extra={}), content), tied))]
        # a second network beside the first is no part of it
        beside = {v.prefix: tuple(other.prefix for other in whole if other.prefix != v.prefix) for v in whole}
        fits = [v for v in whole if all(name.startswith(beside[v.prefix]) for name in v.extra)]
        if fits:
            return _best(fits, content, where)
        views += found
    # the first of equals, so that names are told as they are
    nearest = max(
        views,
        key=lambda view: _fitting(view, own, content),
        default=_View("", {}, dict(zip(content, content, strict=True))),
    )
    behind = f", behind {nearest.prefix!r}" if nearest.prefix else ""
    raise InputError(f"{where}{behind}: {_misfit(own, _completed(own, _state(nearest, content), tied))}")


def _fitting(view: _View, own: Mapping[str, Tensor], content: Mapping[str, Tensor]) -> tuple[int, int, int]:
    same = sum(content[source].shape == own[name].shape for name, source in view.names.items())
    return same, len(view.names), -len(view.extra)


def _state(view: _View, content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sources = view.names | {source: source for source in view.extra.values()}
    return {name: content[source] for name, source in sources.items()}


def _best(fits: list[_View], content: Mapping[str, Tensor], where: str) -> tuple[_View, list[str]]:
    """The averaged weights if there are some; raises InputError if the choice between several is open."""
    averaged = [view for view in fits if AVERAGED.search(view.prefix)]
    first, *others = averaged or fits
    if not all(_same(content, first, other) for other in others):
        names = ", ".join(repr(view.prefix) for view in (first, *others))
        raise InputError(f"{where}: weights behind {names} all fit the model; save those that are meant alone")
    notes = [f"weights behind {first.prefix!r} are used"] if first.prefix else []
    plain = [view.prefix for view in fits if view not in averaged]
    if averaged and plain:
        notes = [f"the averaged weights behind {first.prefix!r} are used, not those behind {plain[0]!r}"]
    return first, notes


def _same(content: Mapping[str, Tensor], first: _View, second: _View) -> bool:
    shared = first.names.keys() & second.names.keys()
    pairs = [(content[first.names[name]], content[second.names[name]]) for name in shared]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _renamings(own: Iterable[str], content: Iterable[str]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Other names of the network's and of the file's tensors, the plainest first, each with the names as they are."""
    files, nets = ([{name: name for name in known}, *_without_inner(known)] for known in (content, own))
    while all("." in name for name in nets[-1]) and len({name.partition(".")[0] for name in nets[-1]}) == 1:
        nets.append({name.partition(".")[2]: before for name, before in nets[-1].items()})
    yield from ((names, sources) for names in nets for sources in files)


def _without_inner(names: Iterable[str]) -> list[dict[str, str]]:
    """The names without what is put into their middle, if they are still all different."""
    short = {INNER.sub("", name).removeprefix("."): name for name in names}
    return [short] if len(short) == len(list(names)) else []


def _views(names: Mapping[str, str], sources: Mapping[str, str]) -> list[_View]:
    """What the file has of the network's `names` behind every prefix; both are new names to names as they are."""
    found: dict[str, dict[str, str]] = {}
    for source in sources:
        for place in (0, *(match.end() for match in re.finditer(r"\.", source))):
            if source[place:] in names:
                found.setdefault(source[:place], {})[names[source[place:]]] = sources[source]
    views = []
    for prefix, own in found.items():
        behind = {source: source[len(prefix) :] for source in sources if source.startswith(prefix)}
        extra = {source: sources[source] for source, name in behind.items() if name not in names}
        views.append(_View(prefix, own, {s: n for s, n in extra.items() if not BESIDE.fullmatch(behind[s])}))
    return views
