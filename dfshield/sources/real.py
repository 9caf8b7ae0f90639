"""The real training set in the format of a synthetic one: the upper bound "Original" of the tables.

What is trained on it is marked ``real_data: train``, whatever the file is called.
"""

from pathlib import Path

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.progress import log
from dfshield.data import sets
from dfshield.models.checkpoints import read_card
from dfshield.sources.trainset import trainset_header, write_whole


def export(dataset: str, data_dir: Path | None, out: Path, teacher: Path, source: str = "real", code: str = "") -> str:
    """Write the whole training split of `dataset` for the given teacher checkpoint; returns the content SHA-256.

    Images keep their values exactly, as float32 in [0,1]. Raises InputError if the teacher takes other images or has
    another number of classes.
    """
    card = read_card(teacher)
    images = sets.load(dataset, "train", sets.data_dir(data_dir))
    if card.input_shape != tuple(images.x.shape[1:]) or card.classes != registry.DATASETS[dataset].classes:
        raise InputError(
            f"{teacher}: takes {list(card.input_shape)} and has {card.classes} classes, {dataset} has "
            f"{list(images.x.shape[1:])} and {registry.DATASETS[dataset].classes}; give a teacher of {dataset}"
        )
    header = trainset_header(
        card,
        source=source,
        real_data=registry.SOURCES["real"].real_data,
        options={"split": "train", "data_sha256": images.sha256()},
        seed=0,
        code=code,
    ) | {"dataset": dataset}
    content = write_whole(out, header, images.x.permute(0, 2, 3, 1).numpy(), images.y.numpy())
    log(f"{out}: {len(images)} real training images of {dataset}, content {content[:16]}")
    return content
