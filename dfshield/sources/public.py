"""Another real data set's images in the format of a training set: the rows "Public" of the tables.

They are brought to the size and the channels that the teacher takes; their labels are the teacher's classes, for their
own mean something else. What is trained on them is marked ``real_data: public``.
"""

from pathlib import Path

import torch

from dfshield import registry
from dfshield.core.device import select_device
from dfshield.core.progress import log
from dfshield.core.rng import generator
from dfshield.data import sets
from dfshield.data.resizing import resize_to
from dfshield.models.checkpoints import load_checkpoint
from dfshield.options import PublicOptions
from dfshield.sources.trainset import trainset_header, write_whole

BATCH = 500


def run(
    teacher: Path, out: Path, options: PublicOptions, data_dir: Path | None, source: str = "public", code: str = ""
) -> str:
    """Write the training split of `options.dataset`, or a part of it, for the teacher; returns the content SHA-256.

    Raises InputError for the teacher's own data set (that is source real), for more images than there are, and for a
    teacher that takes neither grey nor RGB images.
    """
    device = select_device(options.device, options.threads)
    model, card = load_checkpoint(teacher, str(device))
    options.check_dataset(card.dataset, card.input_shape[0])
    images = sets.load(options.dataset, "train", sets.data_dir(data_dir))
    options.check_images(len(images))
    random = generator("public", options.seed)
    chosen = torch.randperm(len(images), generator=random)[: options.images] if options.images else slice(None)
    x = resize_to(images.x[chosen], card.input_shape)
    with torch.no_grad():
        labels = torch.cat([model(part.to(device)).argmax(1).cpu() for part in x.split(BATCH)])
    header = trainset_header(
        card,
        source=source,
        real_data=registry.SOURCES["public"].real_data,
        options=options.described(device) | {"data_sha256": images.sha256()},
        seed=options.seed,
        code=code,
    )
    content = write_whole(out, header, x.permute(0, 2, 3, 1).numpy(), labels.numpy())
    log(f"{out}: {len(x)} images of {options.dataset}, content {content[:16]}")
    return content
