"""Networks that keep something outside their layers, so that a deep copy of them computes something else.

Each computes what `Plain` does. `support.zoo` has them as entries.
"""

import threading
import weakref

import torch
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


class WhileTraining(Plain):
    """A closure has the head of the first network, and is called in training mode alone."""

    def __init__(self):
        super().__init__()
        self.last = lambda x: self.fc(x)

    def forward(self, x):
        x = self.features(x).mean((2, 3))
        return self.last(x) if self.training else self.fc(x)


class Weakly(Plain):
    """A weak reference, which copies keep as it is."""

    def __init__(self):
        super().__init__()
        self.last = weakref.ref(self.fc)

    def forward(self, x):
        return self.last()(self.features(x).mean((2, 3)))


class Itself(Plain):
    """Gives itself for its copy."""

    def __deepcopy__(self, memo):
        return self


class Locked(Plain):
    """Has a lock, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


class ListOfMethods(Plain):
    """Goes through its own methods, which copies bind to themselves."""

    def __init__(self):
        super().__init__()
        self.steps = [self.features, self.head]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class MadeAtFirst(Plain):
    """Makes its head at the first call."""

    def __init__(self):
        super().__init__()
        del self.fc

    def head(self, x):
        if not hasattr(self, "fc"):
            self.fc = nn.Linear(x.shape[1], 4)
        return super().head(x)


class Traced(Plain):
    """Its head is generated code."""

    def __init__(self):
        super().__init__()
        self.fc = torch.jit.trace(nn.Linear(12, 4), torch.rand(2, 12))


class Scripted(Plain):
    """Its head is another kind of generated code."""

    def __init__(self):
        super().__init__()
        self.fc = torch.jit.script(nn.Linear(12, 4))


class Fuses(Plain):
    """Joins its first convolution and BatchNorm whenever it is put into eval mode, as re-parametrised networks do."""

    def __init__(self):
        super().__init__()
        self.fused = None

    def train(self, mode=True):
        super().train(mode)
        scale = self.bn1.weight * (self.bn1.running_var + self.bn1.eps).rsqrt()
        shift = self.bn1.bias - self.bn1.running_mean * scale
        self.fused = None if mode else (self.conv1.weight.mul(scale.view(-1, 1, 1, 1)).detach(), shift.detach())
        return self

    def features(self, x):
        if self.fused is None:
            return super().features(x)
        return F.relu(self.bn2(self.conv2(F.relu(F.conv2d(x, *self.fused, padding=1)))))


class TiedConvolutions(Plain):
    """Two layers with one weight, each with a BatchNorm of its own behind it, and a third that uses it alone."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(12, 12, 3, 1, 1, bias=False), nn.Conv2d(12, 12, 3, 1, 1, bias=False)
        self.right.weight = self.left.weight
        self.bn3, self.bn4 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)

    def forward(self, x):
        x = F.relu(self.bn3(self.left(self.features(x))))
        x = F.relu(self.bn4(self.right(x)))
        return self.head(10 * F.conv2d(x, self.left.weight, padding=1))


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.as_strided(gradient.shape, torch.empty(gradient.shape).stride())


class GradientByMemory(Plain):
    """Its gradient, and nothing else, is wrong in another layout than the contiguous one."""

    def forward(self, x):
        return super().forward(_InOrder.apply(x))


# Networks of which a second one with the same tensors computes something else: all are refused


class KeptWeight(Plain):
    """Keeps in eval mode what it computed of its weight at the first call."""

    def __init__(self):
        super().__init__()
        self.quick = None

    def forward(self, x):
        if self.training:
            return super().forward(x)
        self.quick = self.fc.weight.detach().clone() if self.quick is None else self.quick
        return F.linear(self.features(x).mean((2, 3)), self.quick, self.fc.bias)


class Merged(Plain):
    """Low-rank weights that eval mode adds to the others, and training mode takes off them again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.merged = nn.Parameter(torch.rand(12, 1)), nn.Parameter(torch.rand(4, 1)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.fc.weight.data += (1 - 2 * mode) * self.b @ self.a.T
            self.merged = not mode
        return self

    def head(self, x):
        beside = 0 if self.merged else x.mean((2, 3)) @ self.a @ self.b.T
        return super().head(x) + beside


class Number(Plain):
    """Learns a plain number in training mode."""

    factor = 1.0

    def forward(self, x):
        if self.training:
            self.factor = 0.9 * self.factor + 0.1 * float(x.detach().std() + 1)
        return self.factor * super().forward(x)


class NotStored(Plain):
    """A statistic of training mode that is not stored."""

    def __init__(self):
        super().__init__()
        self.register_buffer("middle", torch.zeros(12), persistent=False)

    def forward(self, x):
        x = self.features(x).mean((2, 3))
        if self.training:
            self.middle.lerp_(x.detach().mean(0), 0.1)
        return self.fc(x - self.middle)


LOST = {
    "keeps what it computed of a weight": KeptWeight,
    "merges weights in eval mode": Merged,
    "learns a number": Number,
    "statistic that is not stored": NotStored,
}

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
    "closure in training mode": WhileTraining,
    "weak reference": Weakly,
    "its own copy": Itself,
    "lock": Locked,
    "list of methods": ListOfMethods,
    "traced part": Traced,
    "scripted part": Scripted,
    "one weight in three places": TiedConvolutions,
    "gradient by place in memory": GradientByMemory,
}
"""Builders by name; all are accepted."""
