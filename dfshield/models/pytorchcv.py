"""Networks of the general data sets, from pytorchcv, and its trained weights.

ResNet-20 and -56 (He et al., arXiv 1512.03385) and WRN-28-10 (Zagoruyko and Komodakis, arXiv 1605.07146), in the form
of pytorchcv, whose trained CIFAR and SVHN models are the paper's teachers.
"""

import hashlib
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

from torch import nn

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.files import atomic
from dfshield.core.progress import log

Shape = tuple[int, int, int]

RELEASES = "https://github.com/osmr/imgclsmob/releases/download"
TIMEOUT_SECONDS = 30


def resnet20(input_shape: Shape, classes: int) -> nn.Module:
    """ResNet-20: 272,474 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    return _resnet(input_shape, classes, units=3)


def resnet56(input_shape: Shape, classes: int) -> nn.Module:
    """ResNet-56: 855,770 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    return _resnet(input_shape, classes, units=9)


def wrn28_10(input_shape: Shape, classes: int) -> nn.Module:
    """WRN-28-10: 36,479,194 parameters for three channels and 10 classes. `input_shape` is (C,H,W)."""
    from pytorchcv.models.wrn_cifar import CIFARWRN

    return _any_size(CIFARWRN([[160] * 4, [320] * 4, [640] * 4], 16, in_channels=input_shape[0], num_classes=classes))


def _resnet(input_shape: Shape, classes: int, units: int) -> nn.Module:
    from pytorchcv.models.resnet_cifar import CIFARResNet

    channels = [[16] * units, [32] * units, [64] * units]
    return _any_size(CIFARResNet(channels, 16, bottleneck=False, in_channels=input_shape[0], num_classes=classes))


def _any_size(net: nn.Module) -> nn.Module:
    """Global pooling in place of the fixed 8x8 window: the same for 32x32 images, and any other size works too."""
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)  # type: ignore[union-attr]
    return net


def find_pretrained(model: str, dataset: str, data_dir: Path) -> Path:
    """The file of pytorchcv's trained weights, found locally or downloaded into ``data_dir/models``.

    Looks in `data_dir`, ``data_dir/models`` and ``~/.torch/models`` first. The file's SHA-1 must be the one that
    pytorchcv publishes. Raises InputError if there is no such model, or no file and no network.
    """
    known = registry.MODELS[model].pretrained
    if dataset not in known:
        raise InputError(f"there are no trained weights of {model} for {dataset}; they exist for: {', '.join(known)}")
    name = known[dataset]
    folders = (data_dir, data_dir / "models", Path.home() / ".torch" / "models")
    sha1, release = _published(f"{model}_{dataset}")
    for folder in folders:
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                _check_sha1(hashlib.file_digest(stream, "sha1").hexdigest(), sha1, folder / name)
            return folder / name
    return _download(name, release, sha1, folders)


def _published(name: str) -> tuple[str, str]:
    """SHA-1 and release tag from the table inside of pytorchcv."""
    from pytorchcv.models.common.model_store import get_model_metainfo

    _, _, sha1, release = get_model_metainfo(name)
    return sha1, release


def _check_sha1(found: str, expected: str, where: Path | str) -> None:
    if found != expected:
        raise InputError(
            f"{where}: SHA-1 is {found[:8]}…, pytorchcv publishes {expected[:8]}…; it is damaged or another file: "
            "remove it and fetch it again"
        )


def _download(name: str, release: str, sha1: str, folders: tuple[Path, ...]) -> Path:
    url = f"{RELEASES}/{release}/{name}.zip"
    path = folders[1] / name
    log(f"downloading {url} to {path}")
    with tempfile.TemporaryFile() as archive:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
                shutil.copyfileobj(response, archive)
            with zipfile.ZipFile(archive) as members:
                content = members.read(name)
        except (OSError, HTTPException, KeyError, zipfile.BadZipFile, zlib.error) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
            raise InputError(
                f"{name}: not found in {', '.join(map(str, folders))}, and the download failed ({reason}); "
                f"fetch {url}, unpack it, and put {name} into {folders[0]}"
            ) from None
    _check_sha1(hashlib.sha1(content).hexdigest(), sha1, url)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path
