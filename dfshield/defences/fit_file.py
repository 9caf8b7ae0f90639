"""The file of a fitted defence: what its fit keeps, and a card that says what it was fitted on.

The file is safetensors, sealed as checkpoints are. It names no time and no host, so equal fits give equal bytes. The
card is read without PyTorch, for reports.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.validation import build
from dfshield.models.card import check_tensors, sealed, stated
from dfshield.options import DefendOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "dfshield-defence"
"""The metadata key of the card."""
REMEDY = "fit it again with `dfshield defend`"


@dataclass(frozen=True)
class FitCard:
    """What a fit is of."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    defence: str
    """Name in ``registry.DEFENCES``."""
    options: dict[str, Any]
    """Options of the defence."""
    threat: str
    """Threat model that it was fitted for."""
    seed: int
    device: str
    """Type of the device, which decides about the last bits."""
    model_sha256: str
    """Of the tensors of the model that is defended."""
    teacher_sha256: str
    """Of those of the model that it was hardened from; its own where nothing was hardened."""
    data_sha256: str
    """Content of the training set."""
    source: str
    """Kind of the training set."""
    real_data: registry.RealData
    """Real data that the fit has seen: those of the training set."""
    package_version: str
    code: str
    tensors_sha256: str = ""
    """Hash of names, types, shapes and values of all tensors; set by `write_fit`."""


_CARD = TypeAdapter(FitCard)


class Fit(NamedTuple):
    """A fit as it was read."""

    card: FitCard
    tensors: "dict[str, Tensor]"


def write_fit(path: Path, card: FitCard, tensors: "dict[str, Tensor]") -> str:
    """Write what a fit keeps, and its card; returns the SHA-256 of the tensors. InputError for values not finite."""
    from safetensors.torch import save

    from dfshield.models.checkpoints import hash_tensors
    from dfshield.models.weights import check_finite

    # clones: safetensors refuses tensors that share memory
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    check_finite(own, f"{path}: not written")
    card = replace(card, tensors_sha256=hash_tensors(own))
    content = save(own, metadata={KEY: sealed(card)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return card.tensors_sha256


def is_fit(path: Path) -> bool:
    """Whether a file begins as one of a fitted defence does."""
    with path.open("rb") as stream:
        return f'"{KEY}"'.encode() in stream.read(100)


def stated_fit(path: Path) -> FitCard:
    """The card of a fit, which has a hash of its own; its tensors are not read. Raises InputError."""
    return stated(Path(path), KEY, _CARD, "fitted defence", REMEDY)


def check_fit_file(path: Path) -> FitCard:
    """The card of a fit, checked against its tensors. Raises InputError for anything but a whole, unchanged file."""
    card = stated_fit(path)
    check_tensors(Path(path), card.tensors_sha256)
    return card


def read_fit(path: Path) -> Fit:
    """Card and tensors, on the CPU, of a file that is whole and unchanged. Raises InputError for any other."""
    from dfshield.models.formats import read_safetensors

    card = check_fit_file(path)
    tensors, _ = read_safetensors(Path(path))
    entry = registry.DEFENCES.get(card.defence)
    if entry is None or not entry.fitted:
        raise InputError(f"{path}: defence {card.defence!r} is not one of {', '.join(fitted_names())}; {REMEDY}")
    lacking = [
        name
        for name in entry.load().keeps  # type: ignore[attr-defined]
        if name not in tensors and not (name.endswith(".") and any(own.startswith(name) for own in tensors))
    ]
    if lacking:
        raise InputError(f"{path}: lacks {', '.join(lacking)}, which {card.defence} keeps; {REMEDY}")
    return Fit(card, tensors)


def fitted_names() -> list[str]:
    """Names of the defences that are fitted."""
    return [name for name, entry in registry.DEFENCES.items() if entry.fitted]


def fit_for(defence: DefendOptions | None, path: Path | None, model_sha256: str) -> Fit | None:
    """The fit in `path` that belongs to a defence before the model with the tensors `model_sha256`; None without one.

    Raises InputError if a fitted defence lacks its file, if another one is given a file, and for a file that is not
    whole or of another model, another defence or other options.
    """
    if defence is None or not registry.DEFENCES[defence.defence].fitted:
        if path is not None:
            what = f"defence {defence.defence} has nothing to fit" if defence else "no defence is given"
            raise InputError(f"{path}: {what}; leave out --fitted")
        return None
    if path is None:
        raise InputError(f"defence {defence.defence} is fitted first; give the file of `dfshield defend` as --fitted")
    fit = read_fit(path)
    own = fit.card
    if own.defence != defence.defence:
        raise InputError(f"{path}: is of defence {own.defence}, not of {defence.defence}; {REMEDY}")
    asked = defence.described()
    for name in sorted(asked.keys() | own.options.keys()):
        if asked.get(name) != own.options.get(name):
            raise InputError(
                f"{path}: was fitted with {name} {own.options.get(name)}, asked for is {asked.get(name)}; {REMEDY}"
            )
    if own.model_sha256 != model_sha256:
        raise InputError(
            f"{path}: was fitted for model {own.model_sha256[:16]}, this one is {model_sha256[:16]}; {REMEDY}"
        )
    return fit


def load_defended(model: Path, fitted: Path, factory: str | None = None) -> "nn.Module":
    """A checkpoint behind its fitted defence as one module, in eval mode on the CPU, for use without this program's
    command line: images (N,C,H,W) in [0,1] to logits (N,classes).

    `factory` is as for `load_checkpoint`. Raises InputError for files that are not whole or do not belong together.
    """
    from dfshield.models.checkpoints import load_checkpoint

    own = stated_fit(fitted)
    options: DefendOptions = build(DefendOptions.class_for(own.defence), own.options, str(fitted))
    classifier, card = load_checkpoint(model, factory=factory)
    fit = fit_for(options.model_copy(update={"seed": own.seed}), fitted, card.tensors_sha256)
    assert fit is not None
    defended: nn.Module = registry.DEFENCES[own.defence].load()(options, fit.tensors).protect(classifier)
    return defended.eval()
