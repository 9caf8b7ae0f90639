"""Training sets beside their teachers, as figures draw them, and the facts of each that their CSVs begin a row with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dfshield.planning.paths import Place
from dfshield.report.figure_sheet import REAL

if TYPE_CHECKING:
    from dfshield.models.classifier import Classifier
    from dfshield.sources.trainset import TrainSet

COLUMNS = ("dataset", "model", "method", "file", "data_sha256", "teacher_sha256", "real_data")


@dataclass(frozen=True)
class Origin:
    """Where the panel of one training set comes from."""

    dataset: str
    model: str
    method: str
    file: str
    data_sha256: str
    teacher_sha256: str
    real_data: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The values of `COLUMNS`."""
        return tuple(getattr(self, name) for name in COLUMNS)

    def titled(self, things: str) -> str:
        """The method, and whether its images, called `things`, are real."""
        return f"{self.method}{REAL.get(self.real_data, f' (real {things})')}"


def seen(
    sets: Iterable[tuple[str, Place]], teachers: Iterable[Path]
) -> Iterator[tuple[Origin, Path, "Classifier", "TrainSet"]]:
    """The origin, file of the teacher, teacher and content of each training set by its method.

    Raises InputError for files that are missing, damaged or do not belong together.
    """
    from dfshield.core.device import select_device
    from dfshield.models.checkpoints import load_checkpoint
    from dfshield.sources import trainset

    device = select_device("cpu", 1)  # the same bits in every job
    for (method, place), teacher in zip(sets, teachers, strict=True):
        path = Path(place.training_images)
        model, card = load_checkpoint(teacher, device)
        own = trainset.read(path)
        trainset.check_fit(own, card, teacher, path)
        stated = (own.attributes["content_sha256"], card.tensors_sha256, own.attributes["real_data"])
        yield Origin(place.dataset, place.model, method, str(path), *stated), teacher, model, own
