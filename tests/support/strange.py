"""Networks as people write them, of one idea each, around one plain network; `support.zoo` says which are used."""

import random
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Plain(nn.Module):
    """Two convolutions with BatchNorm, global mean, one linear layer: (N,3,16,16) to (N,4)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, classes)

    def features(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))

    def head(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.head(self.features(x))


def changed(forward: Callable[..., Any], **layers: Callable[[], Any]) -> Callable[[], nn.Module]:
    """A builder of `Plain` with further or other `layers` and another `forward`."""

    class Changed(Plain):
        def __init__(self) -> None:
            super().__init__()
            for name, make in layers.items():
                setattr(self, name, make())

    Changed.forward = forward  # type: ignore[method-assign]
    return Changed


# Networks that are used as they are


def by_view(self, x):
    x = self.features(x)
    return self.fc(x.view(x.size(0), -1))


def by_flatten(self, x):
    return self.fc(self.features(x).flatten(1))


class ActiveNorm(nn.BatchNorm2d):
    """BatchNorm with its activation inside."""

    def forward(self, x):
        return F.relu(super().forward(x))


def active(self, x):
    return self.head(self.bn2(self.conv2(self.bn1(self.conv1(x)))))


def twice(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    x = F.relu(self.bn1(self.middle(x)))
    return self.head(F.relu(self.bn2(self.conv2(x))))


def projected(self, x):
    return self.fc(F.relu(self.norm(self.inner(self.features(x).mean((2, 3))))))


def always_drops(self, x):
    return self.head(F.dropout(self.features(x), 0.3))


def drops(self, x):
    return self.head(F.dropout(self.features(x), 0.3, self.training))


def counts(self, x):
    self.calls += 1
    return Plain.forward(self, x)


def rolls_dice(self, x):
    return Plain.forward(self, x + random.random() + np.random.rand())


def remembers(self, x):
    self.offset = getattr(self, "offset", 0) + 0.1
    return Plain.forward(self, x + self.offset)


def prints(self, x):
    print("shape", x.shape)
    return Plain.forward(self, x)


def checkpointed(self, x):
    return self.head(checkpoint(self.features, x, use_reentrant=False))


def spectrum(self, x):
    x = torch.fft.irfft2(torch.fft.rfft2(self.features(x)) * self.filter, s=(8, 8))
    return self.head(x)


def in_order(self, x):
    maps = torch.zeros(len(x), 12, 8, 8)
    maps[:, torch.arange(12).flip(0)] = self.features(x)
    return self.head(maps)


def straight_through(self, x):
    return Plain.forward(self, x + ((x * 255).round() / 255 - x).detach())


class ReturnsNothing(Plain):
    """Its `train` returns nothing, which PyTorch's returns itself for."""

    def train(self, mode=True):
        super().train(mode)


class Versioned(Plain):
    """Asks its weights for their version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("no version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Scale(nn.Module):
    """A learnt factor that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(12))


def with_norms(function: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return changed(Plain.forward, bn1=lambda: function(8), bn2=lambda: function(12))


def frozen() -> nn.Module:
    net = Plain()
    net.conv1.requires_grad_(False)
    return net


def normed(kind: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return changed(Plain.forward, fc=lambda: kind(nn.Linear(12, 4)))


# Networks that compute something else, or in another way, than the stages can use


def output(change: Callable[[nn.Module, torch.Tensor], Any]) -> Callable[[], nn.Module]:
    return changed(lambda self, x: change(self, Plain.forward(self, x)))


def features(change: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    return changed(lambda self, x: self.head(change(self, self.features(x))))


def image(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    return changed(lambda self, x: Plain.forward(self, change(x)))


def while_training(make: Callable[[torch.Tensor], Any]) -> Callable[[], nn.Module]:
    return output(lambda self, z: make(z) if self.training else z)


Outputs = namedtuple("Outputs", "logits aux")


def by_hand(self, x):
    for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
        mean, var = norm.running_mean, norm.running_var
        x = F.relu(F.batch_norm(conv(x), mean, var, norm.weight, norm.bias, self.training))
    return self.head(x)


def adapts(self, x):
    self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
    return Plain.forward(self, x - self.mean.view(1, -1, 1, 1))


def fixed_batch(self, x):
    return self.head(self.features(x).view(2, 12, 8, 8)) if len(x) == 2 else self.head(self.features(x)[:1])


def detached_weights(self, x):
    weights = {name: value.detach() for name, value in self.twin.named_parameters()}
    return torch.func.functional_call(self.twin, weights, (x,))


def raises_while_training(self, x):
    if self.training:
        raise NotImplementedError("for inference alone")
    return Plain.forward(self, x)


def by_memory(self, x):
    places = torch.arange(x.numel()).view(x.shape)
    return Plain.forward(self, x.as_strided((x.numel(),), (1,))[places])


@torch.inference_mode()
def inference(self, x):
    return Plain.forward(self, x)


def in_eval_without_graph(self, x):
    with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
        return Plain.forward(self, x)


class InPlainList(Plain):
    """A layer in a list, which PyTorch does not see: it is in no file of weights."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Conv2d(12, 12, 1)]

    def head(self, x):
        return super().head(F.relu(self.layers[0](x)))


class DrawsConstant(Plain):
    """A random projection that the constructor draws, as an attribute."""

    def __init__(self):
        super().__init__()
        self.projection = torch.randn(12, 12)

    def head(self, x):
        return self.fc(x.mean((2, 3)) @ self.projection)


class NotKept(Plain):
    """A random projection in a buffer that is not stored."""

    def __init__(self):
        super().__init__()
        self.register_buffer("projection", torch.randn(12, 12), persistent=False)

    def head(self, x):
        return self.fc(x.mean((2, 3)) @ self.projection)


def ends(self, x):
    raise SystemExit(3)


class Extra(Plain):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


class FrozenNorm(nn.Module):
    """BatchNorm of fixed numbers, as detectors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return (x - self.running_mean.view(1, -1, 1, 1)) * (self.running_var.view(1, -1, 1, 1) + 1e-5).rsqrt()


def quantiles(self, x):
    return self.head((self.features(x).square().sum((2, 3), keepdim=True) - self.least).relu().sqrt())
