"""A small untrained teacher and a training set for tests of what is made from them."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from dfshield.core.hashing import canonical_json
from dfshield.models.checkpoints import Card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.models.factory import build_network
from dfshield.sources.trainset import Writer

SHAPE = (1, 8, 8)
CLASSES = 10


def classifier(model="cnn-s", shape=SHAPE, classes=CLASSES, mean=(0.3,), std=(0.38,), seed=0, scale=1.0) -> Classifier:
    """A registered network whose BatchNorm layers have seen some noise; `scale` multiplies its logits."""
    net = build_network(model, shape, classes, seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(20):
            net(0.8 * torch.randn((32, *shape), generator=random) + 0.2)
        last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.weight.mul_(scale)
    return Classifier(net, mean, std).eval()


class WithSpare(torch.nn.Sequential):
    """Its last layer is not used."""

    def forward(self, x):
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def with_spare() -> Classifier:
    """`classifier` with a layer that is not used."""
    model = classifier()
    layers = OrderedDict([*model.net.named_children(), ("spare", torch.nn.Linear(3, 3))])
    return Classifier(WithSpare(layers), (0.3,), (0.38,)).eval()


def teacher(path: Path, dataset="digits", model="cnn-s", **settings) -> Path:
    """Write `classifier` as a teacher checkpoint and return the path."""
    made = classifier(model, **settings)
    mean, std = (tuple(round(v, 6) for v in t.flatten().tolist()) for t in (made.mean, made.std))
    shape, classes = settings.get("shape", SHAPE), settings.get("classes", CLASSES)
    save_checkpoint(path, made, Card("teacher", dataset, model, shape, classes, mean, std, "teacher"))
    return path


def header(**changes) -> dict:
    """Attributes of a training set."""
    return {
        "teacher_sha256": "t" * 64,
        "dataset": "digits",
        "model": "cnn-s",
        "source": "dss",
        "real_data": "none",
        "options": canonical_json({"group": 1, "batch": 10}),
        "seed": 0,
        "classes": CLASSES,
        "groups": 1,
        "first_group": 0,
        "last_group": 0,
        "package_version": "0",
        "code": "",
    } | changes


def images(n: int, shape=SHAPE, seed=0) -> np.ndarray:
    """Random images (N,H,W,C) float32 in [0,1]."""
    channels, height, width = shape
    return np.random.RandomState(seed).rand(n, height, width, channels).astype(np.float32)


def trainset(
    path: Path, n=60, teacher_sha256="t" * 64, seed=0, shape=SHAPE, labels=None, values=None, **changes
) -> Path:
    """A whole training set of random images, or of `values` (N,C,H,W), by the real writer; returns the path."""
    writer = Writer(path, header(teacher_sha256=teacher_sha256, **changes), ())
    own = images(n, shape, seed) if values is None else np.ascontiguousarray(np.moveaxis(np.asarray(values), 1, 3))
    n = len(own)
    labels = np.arange(n) % CLASSES if labels is None else np.asarray(labels)
    writer.append(own, labels, np.zeros(n, dtype=np.int64), {}, {})
    writer.finish()
    return path
