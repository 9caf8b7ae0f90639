"""A small network with every kind of layer that a program has, and its forms as files."""

import warnings

import torch
from torch import nn

SMALL = (3, 8, 8)
PRESERVE = torch.onnx.TrainingMode.PRESERVE


class Net(nn.Module):
    """Every kind of layer that a program has: a shared one, an unused one, dropout, a size of the batch in a view."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3, momentum=0.2)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 2, padding="valid", groups=2), nn.BatchNorm2d(6, affine=False)
        self.spare = nn.BatchNorm2d(6)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6 * 9, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.drop(torch.relu(self.bn2(self.conv2(x))))
        return self.fc(x.view(x.shape[0], 54))


def with_statistics(net, seed=0):
    """`net` in eval mode, with statistics and weights of BatchNorm that are not those of a new one."""
    random = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=random)
            layer.running_var.uniform_(0.5, 2, generator=random)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 1.5, generator=random)
                layer.bias.data.normal_(0, 0.2, generator=random)
    return net.eval()


def small_net():
    """The network with the same weights every time."""
    torch.manual_seed(0)
    return with_statistics(Net())


def write(net, path, shape=SMALL, count=2, free=True):
    """`net` in the form that the name of `path` says."""
    x = torch.zeros(count, *shape)
    with warnings.catch_warnings(action="ignore"):
        if path.name == "script.pt":
            torch.jit.script(net).save(str(path))
        elif path.suffix == ".pt":
            torch.jit.trace(net, x).save(str(path))
        elif path.suffix == ".pt2":
            sizes = ({0: torch.export.Dim("n")},) if free else None
            torch.export.save(torch.export.export(net, (x,), dynamic_shapes=sizes), str(path))
        else:
            free = {"x": {0: "n"}} if free else {}
            keep = {"training": PRESERVE, "do_constant_folding": False}
            torch.onnx.export(net, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes=free, **keep)
    return path
