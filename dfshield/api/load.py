"""`dfshield.load`: what hardening wrote, back as a network."""

import copy
from pathlib import Path

from torch import nn

from dfshield.core.errors import InputError
from dfshield.defences.fit_file import load_defended
from dfshield.models import given
from dfshield.models.card import GIVEN, read_card
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.formats import read_safetensors
from dfshield.models.weights import fit
from dfshield.report.model_card import MIXTURE, MODEL


def load(
    path: str | Path, network: nn.Module | None = None, factory: str | None = None, *, mixed: bool = False
) -> nn.Module:
    """The network of a checkpoint, in eval mode on the CPU: without normalisation, as it was given.

    `path` is a ``.safetensors`` file of this program, or a folder that holds ``model.safetensors``. `network` is the
    one that was hardened, whatever its weights; it stays as it is. A `factory` (``package.module:function`` or
    ``file.py:function``) builds it anew. A registered model needs neither. With `mixed`, of a folder that
    ``keep_accuracy`` made, the mixture with the original model, which takes images with pixels in [0,1]. Raises
    `dfshield.InputError` for a file that is not whole or of another network.
    """
    place = Path(path)
    if mixed and not place.is_dir():
        raise InputError(f"{place}: is no folder; give that of {MODEL} and {MIXTURE}")
    place = place / MODEL if place.is_dir() else place
    if network is not None and factory is not None:
        raise InputError("load: network and factory are two ways to the same thing; give one")
    if network is not None:
        card = read_card(place)
        if card.factory == GIVEN:
            given.hold(card.arguments["name"], network)
            factory = GIVEN
    if mixed:
        return load_defended(place, place.with_name(MIXTURE), factory)
    if network is None:
        return load_checkpoint(place, "cpu", factory)[0].net
    state, _ = read_safetensors(place)
    made = copy.deepcopy(network).cpu()
    fit(made, state, str(place), assign=False)
    return made.eval()
