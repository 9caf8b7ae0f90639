"""Networks and their published weights."""

from dataclasses import dataclass, field

from dfshield.registry.entry import Entry


@dataclass(frozen=True)
class Model(Entry):
    """A network: ``target`` is a factory ``(input_shape, classes) -> nn.Module`` without a normalisation layer."""

    pretrained: dict[str, str] = field(default_factory=dict)
    """Data set to weights file name, for models that come trained (pytorchcv); empty: the teacher stage trains."""


_PYTORCHCV = {
    ("resnet20", "cifar10"): "0597-9b0024ac",
    ("resnet20", "cifar100"): "2964-a5322afe",
    ("resnet20", "svhn"): "0343-8232e6e4",
    ("resnet56", "cifar10"): "0452-628c42a2",
    ("resnet56", "cifar100"): "2488-d65f53b1",
    ("resnet56", "svhn"): "0275-6e08ed92",
    ("wrn28_10", "cifar10"): "0239-fe97dcd6",
    ("wrn28_10", "cifar100"): "1788-8c3fe818",
    ("wrn28_10", "svhn"): "0271-d62b6bba",
}


def _pytorchcv(model: str, title: str) -> Model:
    files = {data: f"{model}_{data}-{tail}.pth" for (name, data), tail in _PYTORCHCV.items() if name == model}
    return Model(f"dfshield.models.pytorchcv:{model}", title, files)


MODELS = {
    "cnn-s": Model("dfshield.models.cnn:cnn_s", "CNN-S"),
    "cnn-m": Model("dfshield.models.cnn:cnn_m", "CNN-M"),
    "toy": Model("dfshield.models.toy:toy", "Toy network"),
    "resnet20": _pytorchcv("resnet20", "ResNet-20"),
    "resnet56": _pytorchcv("resnet56", "ResNet-56"),
    "wrn28_10": _pytorchcv("wrn28_10", "WRN-28-10"),
    "resnet18": Model("dfshield.models.resnet:resnet18", "ResNet-18"),
    "resnet50": Model("dfshield.models.resnet:resnet50", "ResNet-50"),
    "mobilenetv2": Model("dfshield.models.mobile:mobilenetv2", "MobileNetV2"),
    "shufflenetv2": Model("dfshield.models.mobile:shufflenetv2", "ShuffleNetV2"),
}
