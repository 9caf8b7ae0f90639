"""What a defence leaves of images: PSNR and LPIPS by their definitions, and the command that compares."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio
from support import tiny
from support.attacked import key, network
from support.purification import kept, lively, options
from torch import nn

from dfshield import cli
from dfshield.core import sealed
from dfshield.core.errors import InputError
from dfshield.core.psnr import psnr
from dfshield.core.ssim import ssim
from dfshield.defences.fit_file import FitCard, write_fit
from dfshield.evaluation.quality import RECORD, compared
from dfshield.models.checkpoints import read_card
from dfshield.models.lpips import BLOCKS, CHANNELS, Lpips
from dfshield.options.quality import QualityOptions

CPU = torch.device("cpu")


def test_psnr_by_hand():
    x = torch.zeros((3, 1, 2, 2))
    y = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.1), torch.tensor([[[0.2, 0.0], [0.0, 0.0]]])])
    assert psnr(x, y).tolist() == pytest.approx([math.inf, 20, 20])
    a, b = torch.rand((2, 4, 3, 9, 7), generator=key())
    expected = [
        peak_signal_noise_ratio(one.numpy(), other.numpy(), data_range=1) for one, other in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights in the form of the published ones."""
    folder, torch_random = tmp_path_factory.mktemp("weights"), key(4)
    state, first = {}, 3
    for places, width in zip(BLOCKS, CHANNELS, strict=True):
        for place in places:
            state[f"features.{place}.weight"] = (
                torch.randn((width, first, 3, 3), generator=torch_random) / (3 * first) ** 0.5
            )
            state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=torch_random)
            first = width
    save_file(state, folder / "vgg16.safetensors")
    rand = {f"lin{i}.model.1.weight": torch.rand((1, w, 1, 1), generator=torch_random) for i, w in enumerate(CHANNELS)}
    torch.save(rand, folder / "lpips.pth")
    return folder / "vgg16.safetensors", folder / "lpips.pth"


def by_layers(state, channels, x, y):
    """The distance by the layers of a plain VGG16."""
    layers, first = [], 3
    for block, (places, width) in enumerate(zip(BLOCKS, CHANNELS, strict=True)):
        layers += [nn.MaxPool2d(2)] if block else []
        for place in places:
            convolution = nn.Conv2d(first, width, 3, padding=1)
            convolution.weight.data, convolution.bias.data = (
                state[f"features.{place}.weight"],
                state[f"features.{place}.bias"],
            )
            layers += [convolution, nn.ReLU()]
            first = width
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
    one, other = ((2 * v - 1 - mean) / std for v in (x, y))
    total, ends, block = torch.zeros(len(x)), (3, 8, 15, 22, 29), 0  # places of the last activations
    for number, layer in enumerate(layers):
        one, other = layer(one), layer(other)
        if number in ends:
            weight = channels[f"lin{block}.model.1.weight"].flatten()
            apart = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square()
            total += torch.einsum("nchw,c->nhw", apart, weight).flatten(1).mean(1)
            block += 1
    return total


def test_lpips_is_its_definition(weights):
    from safetensors.torch import load_file

    measure = Lpips(*weights, CPU)
    x, y = torch.rand((2, 2, 3, 32, 32), generator=key(1))
    with torch.no_grad():
        expected = by_layers(load_file(weights[0]), torch.load(weights[1]), x, y)
    torch.testing.assert_close(measure(x, y), expected, rtol=1e-4, atol=1e-6)
    assert measure(x, x).tolist() == [0, 0] and expected.min() > 0.01
    grey = x[:, :1]
    torch.testing.assert_close(
        measure(grey, 1 - grey), measure(grey.expand(-1, 3, -1, -1), 1 - grey.expand(-1, 3, -1, -1))
    )


def test_what_lpips_cannot_take_is_refused(weights, tmp_path):
    for shape in ((3, 8, 8), (2, 32, 32)):
        with pytest.raises(InputError, match="grey or RGB images from 16 pixels on"):
            Lpips(*weights, CPU).check(shape)
    with pytest.raises(
        InputError, match=r"vgg16.safetensors: lin0.model.1.weight is missing, expected \(1, 64, 1, 1\)"
    ):
        Lpips(weights[0], weights[0], CPU)
    with pytest.raises(InputError, match=r"none.pth: no such file \(weights file\)"):
        Lpips(tmp_path / "none.pth", weights[1], CPU)
    with pytest.raises(ValueError, match="lpips needs its published weights; give vgg16, lpips"):
        QualityOptions(measures=("lpips",))


class Halved(nn.Module):
    """Shows its network images of half the contrast."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def seen(self, x):
        return 0.25 + x / 2


def test_means_over_images_of_all_batches():
    net = network(4, (1, 8, 8))
    x = torch.rand((7, 1, 8, 8), generator=key(2))
    with torch.no_grad():
        y = net(x).argmax(1)
    chosen = QualityOptions(batch=3, steps=3, threat="linf:0.2")
    rows = compared(net, Halved(net), x, y, chosen, {"ssim": ssim, "psnr": psnr})
    assert [row["input"] for row in rows] == ["clean", "attacked"]
    assert rows[0]["psnr"] == pytest.approx(float(psnr(0.25 + x / 2, x).double().mean()), rel=1e-6)
    assert rows[0]["ssim"] == pytest.approx(float(ssim(0.25 + x / 2, x).double().mean()), rel=1e-6)
    assert rows[1]["psnr"] < rows[0]["psnr"] and rows[1]["ssim"] < rows[0]["ssim"]
    alone = compared(net, Halved(net), x, y, QualityOptions(steps=0), {"psnr": psnr})
    assert alone == [{"input": "clean", "psnr": pytest.approx(rows[0]["psnr"], rel=1e-6)}]


@pytest.fixture
def files(tmp_path):
    """A checkpoint, an evaluation set and the fit of a purifier."""
    random = torch.rand((6, 8, 8, 1), generator=key(1)).numpy()
    np.savez(tmp_path / "e.npz", x=random, y=np.arange(6))
    teacher = tiny.teacher(tmp_path / "t.safetensors")
    purifier, digest = options("diffpure", time=0.01), read_card(teacher).tensors_sha256
    card = FitCard("diffpure", purifier.described(), "linf:0.1", 0, "cpu", digest, digest, "", "dss", "none", "0", "")
    write_fit(tmp_path / "fit.safetensors", card, kept(lively()))
    given = json.dumps({"defence": "diffpure", **purifier.described()})
    words = ["--model", str(teacher), "--evaluation", str(tmp_path / "e.npz"), "--steps", "2"]
    return words, ["--defence", given, "--fitted", str(tmp_path / "fit.safetensors")]


def test_the_command_writes_a_csv_and_a_record(tmp_path, files):
    words, defence = files
    out = tmp_path / "quality.csv"
    cli.main(["quality", *words, *defence, "--out", str(out)])
    rows = list(csv.DictReader(out.open()))
    record = sealed.read(out.with_suffix(".json"), RECORD)
    assert [row["input"] for row in rows] == ["clean", "attacked"] and list(rows[0]) == ["input", "ssim", "psnr"]
    for row, kept_row in zip(rows, record["rows"], strict=True):
        assert float(row["psnr"]) == pytest.approx(kept_row["psnr"], rel=1e-4) and 0 < float(row["ssim"]) < 1
    assert record["n"] == 6 and record["defence"] == "diffpure" and set(record["others"]) == {"defence"}
    before = out.with_suffix(".json").read_bytes()
    cli.main(["quality", *words, *defence, "--out", str(out)])
    assert out.with_suffix(".json").read_bytes() == before
    cli.main(["quality", *words, "--defence", "bit-depth", "--measures", "psnr", "--out", str(out)])
    assert float(next(csv.DictReader(out.open()))["psnr"]) > 20


@pytest.mark.parametrize(
    "words, said",
    [
        (["--defence", "bit-depth", "--measures", "lpips"], "lpips needs its published weights; give vgg16, lpips"),
        (["--defence", "k-wta"], "k-wta shows its classifier no image; give one that changes images"),
        (["--defence", "diffpure"], "is fitted first; give the file"),
        ([], "--defence"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, files, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        cli.main(["quality", *files[0], *words, "--out", "x.csv"])
    assert done.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "x.csv").exists()
