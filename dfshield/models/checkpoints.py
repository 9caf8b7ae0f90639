"""Checkpoints: a classifier with everything that is needed to use, trace and check it, in one safetensors file.

The card says what it is (`dfshield.models.card`). It names no time and no host, so equal runs give equal bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.rng import generator
from dfshield.models.bundles import PLACES
from dfshield.models.card import KEY, Card, hash_values, read_card, sealed
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.models.formats import read_safetensors
from dfshield.models.rehearsal import check_second
from dfshield.models.standins import settle
from dfshield.models.user_code import as_author
from dfshield.models.weights import check_finite, fit

__all__ = ["Card", "Classifier", "build_network", "load_checkpoint", "read_card", "save_checkpoint"]


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and values, in the order of the names."""
    tensors = ((key, state[key].detach().cpu().contiguous()) for key in sorted(state))
    return hash_values(
        (key, str(value.dtype).removeprefix("torch."), list(value.shape), _bytes(value)) for key, value in tensors
    )


def _bytes(value: Tensor) -> memoryview:
    return value.reshape(-1).view(torch.uint8).numpy().data


def save_checkpoint(path: Path, model: Classifier, card: Card) -> str:
    """Write `model`'s network with `card` and return the SHA-256 of its tensors.

    Raises InputError for weights that are not finite and for a user's network that would not be the same when the file
    is loaded, ValueError if card and model disagree on the normalisation.
    """
    for name in ("mean", "std"):
        own = getattr(model, name).flatten().cpu()
        if not torch.equal(own, torch.tensor(getattr(card, name), dtype=torch.float32)):
            raise ValueError(f"the card's {name} is not the model's")
    # clones: safetensors refuses tensors that share memory (tied weights)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.net.state_dict().items()}
    check_finite(state, f"{path}: not written")
    if card.factory and model.build:
        images = torch.rand((4, *card.input_shape), generator=generator("written")).to(model.mean.device)
        with as_author(card.factory, f"{path}: not written: "):
            check_second(model, images, f"{path}: not written: ")
    card = replace(card, tensors_sha256=hash_tensors(state))
    content = save(state, metadata={KEY: sealed(card)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return card.tensors_sha256


def load_checkpoint(
    path: Path, device: str | torch.device = "cpu", factory: str | None = None
) -> tuple[Classifier, Card]:
    """Read a checkpoint; the classifier is on `device`, in eval mode.

    A user's factory is imported only if the caller passes the `factory` that the card names, so that a file from
    elsewhere cannot make us run code. Its file may lie in another folder than it did. Raises InputError for anything
    but a whole, unchanged checkpoint with finite weights that fit the network.
    """
    path = Path(path)
    card = read_card(path)
    if factory is None and card.factory in PLACES:
        factory = card.factory  # our own code, which runs none of the files that it reads
    if _name(card.factory) != _name(factory):
        raise InputError(f"{path}: {_factory_remedy(card.factory, factory)}")
    state, _ = read_safetensors(path)
    build: Callable[..., nn.Module] | None = None
    if card.factory is None:
        with torch.device("meta"):  # no memory and no time for weights that are replaced at once
            net = build_network(card.model, card.input_shape, card.classes)
    else:
        build = partial(build_network, card.model, card.input_shape, card.classes, factory, card.arguments)
        net = build()
    fit(net, state, str(path), assign=build is None)  # what is assigned is shared with no other layer any more
    classifier = Classifier(net, card.mean, card.std, build).to(device).eval()
    if build is not None:
        with as_author(str(factory), f"{path}: "):
            settle(classifier, card.input_shape)
    return classifier, card


def _name(factory: str | None) -> str | None:
    """A factory without the folder of its file."""
    place, _, function = (factory or "").rpartition(":")
    return f"{Path(place).name}:{function}" if place.endswith(".py") else factory


def _factory_remedy(stored: str | None, given: str | None) -> str:
    if stored is None:
        return f"is a registered model, but factory {given!r} was given; leave the factory out"
    if given is None:
        return (
            f"is built by the user's code {stored!r}, which a file may not make us run; "
            f"if you trust that code, give factory {stored!r} as well"
        )
    return f"is built by factory {stored!r}, but {given!r} was given; give the same factory"
