"""`dfshield.load`: what hardening wrote, back as a network."""

import copy
from pathlib import Path

from torch import nn

from dfshield.core.errors import InputError
from dfshield.models.card import read_card
from dfshield.models.checkpoints import load_checkpoint
from dfshield.models.formats import read_safetensors
from dfshield.models.weights import fit
from dfshield.report.model_card import MODEL


def load(path: str | Path, network: nn.Module | None = None, factory: str | None = None) -> nn.Module:
    """The network of a checkpoint, in eval mode on the CPU: without normalisation, as it was given.

    `path` is a ``.safetensors`` file of this program, or a folder that holds ``model.safetensors``. `network` is the
    one that was hardened, whatever its weights; it stays as it is. A `factory` (``package.module:function`` or
    ``file.py:function``) builds it anew. A registered model needs neither. Raises `dfshield.InputError` for a file that
    is not whole or of another network.
    """
    place = Path(path)
    place = place / MODEL if place.is_dir() else place
    if network is None:
        return load_checkpoint(place, "cpu", factory)[0].net
    if factory is not None:
        raise InputError("load: network and factory are two ways to the same thing; give one")
    read_card(place)
    state, _ = read_safetensors(place)
    made = copy.deepcopy(network).cpu()
    fit(made, state, str(place), assign=False)
    return made.eval()
