"""Networks that keep something outside their layers, so that a deep copy of them computes something else.

Each computes what `Plain` does. `support.zoo` has them as entries.
"""

import torch.nn.functional as F
from torch import nn

from .strange import Plain

SEEN: dict[str, object] = {}


class Hooked(Plain):
    """A hook's closure keeps the feature map for the head, as for class activation maps."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.bn2.register_forward_hook(lambda module, inputs, output: self.kept.__setitem__("map", output))

    def forward(self, x):
        self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(self.kept["map"]))


class InGlobal(Plain):
    """A hook keeps the feature map in a module's global, which copies share: right while nobody calls both at once."""

    def __init__(self):
        super().__init__()
        self.bn2.register_forward_hook(lambda module, inputs, output: SEEN.__setitem__("map", output))

    def forward(self, x):
        self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(SEEN["map"]))


class BoundEarly(Plain):
    """A closure has the head of the first network for ever."""

    def __init__(self):
        super().__init__()
        self.last = lambda x: self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.last(self.features(x))


class DefaultArgument(Plain):
    """A function's default argument is a layer."""

    def __init__(self):
        super().__init__()

        def last(x, layer=self.fc):
            return layer(x.mean((2, 3)))

        self.last = last

    def forward(self, x):
        return self.last(self.features(x))


class InnerPointer(nn.Module):
    """Another object holds a layer: copied with it, and so right."""

    class Holder:
        def __init__(self, layer):
            self.layer = layer

    def __init__(self):
        super().__init__()
        inner = Plain()
        for name, layer in inner.named_children():
            setattr(self, name, layer)
        self.holder = self.Holder(self.fc)

    def forward(self, x):
        return self.holder.layer(Plain.features(self, x).mean((2, 3)))


class ReplacedForward(Plain):
    """A method of the object is replaced by one that is bound to the object."""

    def __init__(self):
        super().__init__()
        self.forward = self.whole

    def whole(self, x):
        return self.head(self.features(x))


class NormWithForward(Plain):
    """A BatchNorm layer whose forward was replaced by one with its activation inside."""

    def __init__(self):
        super().__init__()
        before = self.bn1.forward
        self.bn1.forward = lambda x: F.relu(before(x))

    def forward(self, x):
        return self.head(F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x))))))


class Tied(Plain):
    """One convolution under two names."""

    def __init__(self):
        super().__init__()
        self.again = self.conv1


class TiedWeight(Plain):
    """Two layers with one weight, each with a BatchNorm of its own."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(12, 12, 1, bias=False), nn.Conv2d(12, 12, 1, bias=False)
        self.right.weight = self.left.weight
        self.bn3, self.bn4 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)

    def forward(self, x):
        x = self.features(x)
        return self.head(F.relu(self.bn4(self.right(F.relu(self.bn3(self.left(x)))))))


class Unpicklable(Plain):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.messages = (message for message in ())


class Cached(Plain):
    """Keeps its last feature map as an attribute, with its graph, which PyTorch refuses to copy."""

    def forward(self, x):
        self.map = self.features(x)
        return self.head(self.map)


class Delegating(nn.Module):
    """A wrapper that answers for its network, attributes and all."""

    def __init__(self):
        super().__init__()
        self.inner = Plain()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x)


SINGLE = Plain()


class Shared(Plain):
    """All networks of this kind use the head of one network of the module."""

    def forward(self, x):
        return SINGLE.fc(self.features(x).mean((2, 3)))


KEPT = {
    "hook's closure": Hooked,
    "map in a global": InGlobal,
    "closure over itself": BoundEarly,
    "default argument": DefaultArgument,
    "layer in an object": InnerPointer,
    "bound forward": ReplacedForward,
    "BatchNorm with another forward": NormWithForward,
    "layer under two names": Tied,
    "one weight in two layers": TiedWeight,
    "what cannot be copied": Unpicklable,
    "map as an attribute": Cached,
    "delegates": Delegating,
}
"""Builders by name; all are accepted."""
