"""Checkpoints: a classifier with everything that is needed to use, trace and check it, in one safetensors file.

The file's only metadata key ``dfshield`` holds the card, canonical JSON with a SHA-256 of the tensors and one of
itself. It names no time and no host, so equal runs give equal bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from dfshield.models.factory import build_network
from dfshield.models.weights import check_finite, fit, load_state, read_safetensors, refuse_foreign
from dfshield.registry import RealData
from dfshield.runtime import InputError, atomic, canonical_json, digest, existing_file

__all__ = ["Card", "Classifier", "build_network", "load_checkpoint", "load_state", "save_checkpoint"]

FORMAT = 1
"""Version of the file format; a file with a higher one is refused."""


class Classifier(nn.Module):
    """A network behind its normalisation: images (N,C,H,W) in [0,1] to logits (N,classes).

    `mean` and `std` are per channel, for pixels in [0,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Card:
    """What a checkpoint is: its network, its input, and what it was made from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["teacher", "student"]
    dataset: str
    model: str
    """Name in ``registry.MODELS``, or the user's own name for it."""
    input_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """(C,H,W)."""
    classes: Annotated[int, Field(ge=2)]
    mean: tuple[FiniteFloat, ...]
    """Per channel, for pixels in [0,1]."""
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    real_data: RealData
    """Real data seen since the teacher: ``teacher`` for a teacher, inherited from the training data for a student."""
    factory: str | None = None
    """None for a registered model, else the user's ``package.module:function`` or ``file.py:function``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Options, seed, hashes of what went in, code digest, package version."""
    tensors_sha256: str = ""
    """Hash of names, types, shapes and values of all tensors; set by `save_checkpoint`."""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError(
                f"mean and std need one value per channel: {len(self.mean)} and {len(self.std)} "
                f"for {self.input_shape[0]} channels"
            )


_CARD = TypeAdapter(Card)


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(canonical_json([key, str(value.dtype), list(value.shape)]).encode() + b"\0")
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_checkpoint(path: Path, model: Classifier, card: Card) -> str:
    """Write `model`'s network with `card` and return the SHA-256 of its tensors.

    Raises InputError for weights that are not finite, ValueError if card and model disagree on the normalisation.
    """
    for name in ("mean", "std"):
        own = getattr(model, name).flatten().cpu()
        if not torch.equal(own, torch.tensor(getattr(card, name), dtype=torch.float32)):
            raise ValueError(f"the card's {name} is not the model's")
    # clones: safetensors refuses tensors that share memory (tied weights)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.net.state_dict().items()}
    check_finite(state, f"{path}: not written")
    card = replace(card, tensors_sha256=hash_tensors(state))
    body = {"format": FORMAT} | asdict(card)
    with atomic(path) as temporary:
        save_file(state, temporary, metadata={"dfshield": canonical_json(body | {"sha256": digest(body)})})
    return card.tensors_sha256


def load_checkpoint(
    path: Path, device: str | torch.device = "cpu", factory: str | None = None
) -> tuple[Classifier, Card]:
    """Read a checkpoint; the classifier is on `device`, in eval mode.

    A user's factory is imported only if the caller passes the very `factory` that the card names, so that a file from
    elsewhere cannot make us run code. Raises InputError for anything but a whole, unchanged checkpoint with finite
    weights that fit the network.
    """
    path = Path(path)
    card, state = _read(path)
    if card.factory != factory:
        raise InputError(f"{path}: {_factory_remedy(card.factory, factory)}")
    if card.factory is None:
        with torch.device("meta"):  # no memory and no time for weights that are replaced at once
            net = build_network(card.model, card.input_shape, card.classes)
    else:
        net = build_network(card.model, card.input_shape, card.classes, card.factory, card.arguments)
    fit(net, state, str(path), assign=True)
    return Classifier(net, card.mean, card.std).to(device).eval(), card


def read_card(path: Path) -> Card:
    """The card of a checkpoint, checked against its tensors, without building the network."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Card, dict[str, Tensor]]:
    existing_file(path, "checkpoint", "run the stage that makes it, or correct the path")
    refuse_foreign(path)
    state, metadata = read_safetensors(path)
    if set(metadata) != {"dfshield"}:
        raise InputError(
            f"{path}: is not a checkpoint of dfshield; bring weights in with `dfshield teacher --weights {path}` first"
        )
    card = _parse(metadata["dfshield"], path)
    if hash_tensors(state) != card.tensors_sha256:
        raise InputError(f"{path}: its tensors differ from their SHA-256, so it is damaged; make or fetch it again")
    check_finite(state, str(path))
    return card, state


def _parse(text: str, path: Path) -> Card:
    try:
        body = json.loads(text)
        version = body["format"]
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"{path}: format {version} is from a newer dfshield (this one reads {FORMAT}); upgrade")
        stated = body.pop("sha256")
        if stated != digest(body) or body.pop("format") != FORMAT:
            raise InputError(f"{path}: its card differs from its SHA-256, so it is damaged; make or fetch it again")
        return _CARD.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: its card is not valid ({place}: {first['msg']}); make it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: its card cannot be read; make or fetch it again") from None


def _factory_remedy(stored: str | None, given: str | None) -> str:
    if stored is None:
        return f"is a registered model, but factory {given!r} was given; leave the factory out"
    if given is None:
        return (
            f"is built by the user's code {stored!r}, which a file may not make us run; "
            f"if you trust that code, give factory {stored!r} as well"
        )
    return f"is built by factory {stored!r}, but {given!r} was given; give the same factory"
