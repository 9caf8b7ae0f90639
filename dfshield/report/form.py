"""A hardened model in the form that its original came in, beside the weights: an ONNX graph, a folder of a hub."""

import shutil
from pathlib import Path

from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.progress import log
from dfshield.models.bundles import GRAPH, HUB
from dfshield.models.card import Card

ONNX_FILE = "model.onnx"
TOLD = ("config.json", "preprocessor_config.json")
"""What transformers and timm read of a folder besides the weights, which keep their names."""
MOST_NAMES = 20
"""Names of classes that a card lists."""


def write_form(card: Card, student: Path, out: Path) -> None:
    """Write to `out` what the checkpoint `student` with `card` lacks to be what its original was.

    Raises InputError where the original's files are gone or changed. A network that cannot be written as an ONNX graph
    is handed out without one, which is said.
    """
    if card.factory == HUB:
        for name in TOLD:
            source = Path(card.arguments["folder"]) / name
            if source.is_file():
                with atomic(out / name) as temporary:
                    shutil.copyfile(source, temporary)
    if _is_onnx(card):
        from dfshield.models.checkpoints import load_checkpoint
        from dfshield.models.onnx_file import write_onnx

        network = load_checkpoint(student)[0].net
        try:
            write_onnx(network, out / ONNX_FILE, card.input_shape)
        except InputError as error:
            (out / ONNX_FILE).unlink(missing_ok=True)  # of another network
            log(str(error))


def form_section(card: Card, onnx: bool) -> list[str]:
    """What the model card says of it; `onnx`: there is a graph."""
    if card.factory == HUB:
        from dfshield.models.hubs import class_names

        text = (
            "This folder is one of the kind that the original came in: `config.json` lies beside the weights, whose "
            "names are the original's."
        )
        folder = Path(card.arguments["folder"])
        if names := class_names(folder, card.classes) if folder.exists() else []:
            said = ", ".join(f"{index} {name}" for index, name in enumerate(names[:MOST_NAMES]))
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            text += f" It names its classes: {said}{more}."
    elif _is_onnx(card) and not onnx:
        text = "The original is an ONNX graph; this network could not be written as one, so only its weights are here."
    elif _is_onnx(card):
        text = (
            f"`{ONNX_FILE}` is the same network as an ONNX graph for any number of images, with its "
            "input normalised as the original's; onnxruntime's answers were compared when it was written."
        )
    else:
        return []
    return [text, ""]


def _is_onnx(card: Card) -> bool:
    return card.factory == GRAPH and str(card.arguments["file"]).endswith(".onnx")
