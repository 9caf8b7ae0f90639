"""Model inversion: the whole loop against a plain second version, the file against interruption and any number of
shards."""

import math
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import tiny
from support.zoo import ZOO
from test_objective import Reference

from benchmarks.sources import slope
from dfshield.core.errors import InputError
from dfshield.core.rng import generator
from dfshield.models.checkpoints import Card, load_checkpoint, read_card, save_checkpoint
from dfshield.models.classifier import Classifier
from dfshield.options import PROFILES
from dfshield.options.sources import Inversion
from dfshield.sources import inversion
from dfshield.sources import trainset as shards
from dfshield.sources.inversion import ModelInversion, noise, run
from dfshield.sources.objective import TERMS

UNIT = (0.5,) * 3, (0.25,) * 3
"""Mean and standard deviation."""
QUICK = Inversion(device="cpu", images=60, batch=10, iterations=3)


def quick(**changes) -> Inversion:
    return Inversion(**(QUICK.model_dump() | changes))


# --- one group -------------------------------------------------------------------------------------------------------


def plain_group(model: Classifier, shape: tuple, options: Inversion, index: int) -> np.ndarray:
    """A second version of a group: batch after batch, torch's own operations, a plain Adam."""
    net, first = model.net, index * options.group
    k = min(options.group, options.images // options.batch - first)
    random = generator("synthesis", options.seed, index)
    base = torch.tensor([options.alpha_class, options.alpha_feature, options.alpha_prior], dtype=torch.float64)
    alphas = torch.stack([base * torch.rand(3, generator=random, dtype=torch.float64) for _ in range(k)]).float()
    start = torch.randn((k * options.batch, *shape), generator=random)
    offsets = torch.randint(-options.roll, options.roll + 1, (options.iterations, k, 2), generator=random)
    reference, result = Reference(net), []
    for part, x in enumerate(start.chunk(k)):
        labels = torch.full((options.batch,), (first + part) % tiny.CLASSES)
        z, m, v = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
        for step in range(1, options.iterations + 1):
            z.requires_grad_()
            rolled = torch.roll(z, offsets[step - 1, part].tolist(), (2, 3))
            (g,) = torch.autograd.grad((alphas[part] * reference.terms(net, rolled, labels)).sum(), z)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            lr = options.lr
            if options.schedule == "cosine":
                lr *= (1 + math.cos(math.pi * (step - 1) / options.iterations)) / 2
            z = (z - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)).detach()
        result.append((model.mean + model.std * z).clamp(0, 1))
    return torch.cat(result).permute(0, 2, 3, 1).numpy()


COLOUR = {"shape": (3, 8, 8), "mean": (0.3, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


@pytest.mark.parametrize(("group", "index", "schedule"), [(1, 4, "constant"), (3, 0, "constant"), (4, 1, "cosine")])
@pytest.mark.parametrize("settings", [{}, COLOUR], ids=["grey", "colour"])
def test_the_loop_against_a_plain_version(group, index, schedule, settings):
    options = quick(group=group, iterations=6, schedule=schedule)
    shape = settings.get("shape", tiny.SHAPE)
    found = ModelInversion(tiny.classifier(**settings), shape, tiny.CLASSES, options).group(index)
    expected = plain_group(tiny.classifier(**settings), shape, options, index)
    assert found["images"].shape == expected.shape
    # Adam's first steps follow the sign of a gradient, so rounding may turn a pixel whose gradient is near zero
    assert np.mean(np.abs(found["images"] - expected) > 1e-3) < 0.01


def test_a_smooth_start_has_most_of_its_variance_at_low_frequencies():
    white, smooth = (noise((50, 3, 32, 32), start, generator("start")) for start in ("white", "smooth"))
    assert white.shape == smooth.shape
    coarse = [F.avg_pool2d(x, 4).var() / x.var() for x in (white, smooth)]
    assert coarse[0] == pytest.approx(1 / 16, rel=0.05)  # of independent pixels
    assert coarse[1] > 0.9
    assert 0.8 < smooth.std() < 1.1
    channels = np.corrcoef(smooth.transpose(0, 1).flatten(1).numpy())[np.triu_indices(3, 1)]
    assert channels == pytest.approx(0.9, abs=0.03)
    assert slope(smooth) == pytest.approx(-3, abs=0.3)
    assert slope(white) == pytest.approx(0, abs=0.1)
    assert noise((1, 1, 6, 5), "smooth", generator("start")).shape == (1, 1, 6, 5)


def test_labels_cycle_by_batch_or_are_drawn_by_image():
    synthesizer = ModelInversion(tiny.classifier(), tiny.SHAPE, 4, quick(group=2))
    labels = [synthesizer.group(i)["labels"].reshape(-1, 10) for i in range(3)]
    assert np.concatenate(labels)[:, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert all((batch == batch[0]).all() for batch in np.concatenate(labels))
    options = quick(labels="random", iterations=1, batch=60)
    drawn = ModelInversion(tiny.classifier(), tiny.SHAPE, 10, options).group(0)["labels"]
    assert len(np.unique(drawn)) == 10
    assert (drawn[:10] != drawn[0]).any()


def rolled_inputs(options: Inversion) -> list[torch.Tensor]:
    """What the network was given at every step of group 0."""
    model, seen = tiny.classifier(), []
    model.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    synthesizer = ModelInversion(model, tiny.SHAPE, tiny.CLASSES, options)
    seen.clear()
    synthesizer.group(0)
    return seen[: options.iterations]


def test_every_step_rolls_each_batch_by_its_own_offset():
    still = quick(group=2, iterations=30, lr=1e-30)
    start = rolled_inputs(quick(group=2, iterations=30, lr=1e-30, roll=0))[0]
    offsets = set()
    for step in rolled_inputs(still):
        for part, original in zip(step.chunk(2), start.chunk(2), strict=True):
            fits = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if torch.allclose(part, original.roll((down, right), (2, 3)), atol=1e-6)
            ]
            assert len(fits) == 1
            offsets.add(fits[0])
    assert len(offsets) > 15  # of 25
    assert {down for down, _ in offsets} == {right for _, right in offsets} == {-2, -1, 0, 1, 2}
    assert all(torch.equal(step, start) for step in rolled_inputs(quick(group=2, iterations=4, lr=1e-30, roll=0)))


def test_pixels_are_optimised_in_normalised_space():
    """Two teachers that differ in their normalisation alone work on the same z: images are its two images."""
    options = quick(iterations=20)
    found = []
    for mean, std in ((0.5, 0.02), (0.4, 0.05)):
        made = ModelInversion(tiny.classifier(mean=(mean,), std=(std,)), tiny.SHAPE, tiny.CLASSES, options).group(0)
        found.append((made["images"] - mean) / std)
        assert made["images"].min() > 0
        assert made["images"].max() < 1  # nothing was cut
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_pixels_are_cut_once_at_the_end_or_after_every_step():
    black, white = ((edge - 0.3) / 0.38 for edge in (0, 1))
    end = rolled_inputs(quick(iterations=4))
    assert max(step.max() for step in end[1:]) > white + 0.1
    step = rolled_inputs(quick(iterations=4, clamp="step"))
    assert torch.equal(step[0], end[0])
    assert max(part.max() for part in step[1:]) <= white + 1e-5
    assert min(part.min() for part in step[1:]) >= black - 1e-5
    for clamp in ("end", "step"):
        images = ModelInversion(tiny.classifier(), tiny.SHAPE, tiny.CLASSES, quick(clamp=clamp)).group(0)["images"]
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize("storage", ["float32", "uint8"])
def test_final_losses_are_those_of_the_stored_images(storage):
    options = quick(group=2, storage=storage, iterations=4)
    made = ModelInversion(tiny.classifier(), tiny.SHAPE, tiny.CLASSES, options).group(1)
    assert made["images"].dtype == (np.uint8 if storage == "uint8" else np.float32)
    images = torch.from_numpy(made["images"]).float().permute(0, 3, 1, 2) / (255 if storage == "uint8" else 1)
    model = tiny.classifier()
    reference = Reference(model.net)
    for part, (x, labels) in enumerate(zip(images.chunk(2), torch.from_numpy(made["labels"]).chunk(2), strict=True)):
        expected = reference.terms(model.net, (x - model.mean) / model.std, labels).tolist()
        found = [float(made[f"final_loss_{term}"][part]) for term in TERMS]
        assert found == pytest.approx(expected, rel=1e-5)


def test_uint8_is_the_rounded_float_image():
    made = {}
    for storage in ("float32", "uint8"):
        options = quick(storage=storage)
        made[storage] = ModelInversion(tiny.classifier(), tiny.SHAPE, tiny.CLASSES, options).group(2)["images"]
    assert np.array_equal(made["uint8"], np.rint(made["float32"] * 255).astype(np.uint8))


@pytest.mark.parametrize("settings", [{}, COLOUR], ids=["grey", "colour"])
def test_the_objective_falls(settings):
    losses = []
    for iterations in (1, 60):
        options = quick(images=20, batch=20, iterations=iterations, coefficients="fixed", clamp="step")
        shape = settings.get("shape", tiny.SHAPE)
        made = ModelInversion(tiny.classifier(**settings), shape, tiny.CLASSES, options).group(0)
        losses.append(float(made["final_loss_class"][0] + made["final_loss_feature"][0]))
    assert losses[1] < 0.9 * losses[0]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path):
    return tiny.teacher(tmp_path / "teacher.safetensors")


def content(path) -> str:
    return shards.header(path)["content_sha256"]


@pytest.mark.parametrize("group", [1, 4])
def test_any_number_of_shards_gives_the_same_set(teacher, tmp_path, group):
    options = quick(images=120, group=group, iterations=2)
    found = []
    for count in {1, 2, min(6, options.groups)}:
        paths = [tmp_path / f"{count}-{i}.h5" for i in range(count)]
        for i in reversed(range(count)):
            run(teacher, paths[i], options, i, count)
        found.append(shards.merge(paths[::-1], tmp_path / f"{count}.h5"))
    assert len(set(found)) == 1
    assert content(paths[0]) != found[0] or count == 1
    with h5py.File(tmp_path / "1.h5") as file:
        assert file["batch"][()].tolist() == np.repeat(np.arange(12), 10).tolist()


def test_shards_of_a_network_that_is_random_in_eval_mode_give_the_same_set(tmp_path):
    name, factory = "dropout in eval mode", "support.zoo:build"
    path, card = tmp_path / "teacher.safetensors", Card("teacher", "mine", "mine", (3, 16, 16), 4, *UNIT, "teacher")
    model = Classifier(ZOO[name].network(), *UNIT)
    save_checkpoint(path, model, replace(card, factory=factory, arguments={"name": name}))
    contents = []
    for count in (1, 3):
        paths = [tmp_path / f"{count}-{i}.h5" for i in range(count)]
        for i in reversed(range(count)):
            torch.manual_seed(count + i)
            run(path, paths[i], quick(group=2), i, count, factory=factory)
        contents.append(shards.merge(paths, tmp_path / f"{count}.h5"))
    assert contents[0] == contents[1]


def test_a_group_made_alone_is_the_one_in_the_file(teacher, tmp_path):
    options = quick(group=2)
    run(teacher, tmp_path / "data.h5", options)
    model, card = load_checkpoint(teacher)
    alone = ModelInversion(model, card.input_shape, card.classes, options).group(1)
    with h5py.File(tmp_path / "data.h5") as file:
        assert np.array_equal(file["images"][20:40], alone["images"])
        assert np.array_equal(file["labels"][20:40], alone["labels"])
        assert np.array_equal(file["final_loss/feature"][2:4], alone["final_loss_feature"])


def test_what_matters_changes_the_set_and_what_does_not_does_not(teacher, tmp_path):
    def made(**changes):
        out = tmp_path / "out.h5"
        torch.rand(3)  # the global generator is of no account
        run(teacher, out, quick(images=20, iterations=2, **changes))
        return content(out)

    first = made()
    assert made() == made(device="auto" if not torch.cuda.is_available() else "cpu") == first
    assert len({first, made(seed=1), made(lr=0.2), made(labels="random"), made(storage="uint8")}) == 5


def test_a_stopped_run_goes_on_to_the_same_bytes(teacher, tmp_path, monkeypatch):
    options, state = quick(iterations=2), tmp_path / "state"
    run(teacher, tmp_path / "whole.h5", options, 1, 2)
    genuine, made = ModelInversion.group, []

    def group(self, index, bar=None):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return genuine(self, index, bar)

    monkeypatch.setattr(ModelInversion, "group", group)
    with pytest.raises(KeyboardInterrupt):
        run(teacher, tmp_path / "resumed.h5", options, 1, 2, state=state)
    assert not (tmp_path / "resumed.h5").exists()
    (kept := sorted(state.rglob("*.npz")))[0].write_bytes(b"PK damaged")  # a damaged piece is made again
    assert len(kept) == 2
    made.clear()
    monkeypatch.setattr(
        ModelInversion, "group", lambda self, index, bar=None: made.append(index) or genuine(self, index, bar)
    )
    run(teacher, tmp_path / "resumed.h5", options, 1, 2, state=state)
    assert made == [3, 5]
    assert (tmp_path / "resumed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not list(state.rglob("*.npz"))


def test_pieces_of_another_run_are_not_taken(teacher, tmp_path, monkeypatch):
    state = tmp_path / "state"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(inversion, "Writer", lambda *a, **k: 1 / 0)
        run(teacher, tmp_path / "a.h5", quick(), state=state)
    assert not (tmp_path / "a.h5").exists()
    run(teacher, tmp_path / "b.h5", quick(seed=1), state=state)
    run(teacher, tmp_path / "c.h5", quick(seed=1))
    assert content(tmp_path / "b.h5") == content(tmp_path / "c.h5")


def test_what_the_file_says_of_itself(teacher, tmp_path):
    run(teacher, tmp_path / "s.h5", quick(group=4), 1, 2, source="mine", code="digest")
    found = shards.header(tmp_path / "s.h5")
    assert found["teacher_sha256"] == read_card(teacher).tensors_sha256
    assert (found["real_data"], found["source"], found["code"], found["complete"]) == ("none", "mine", "digest", True)
    assert (found["groups"], found["first_group"], found["last_group"]) == (2, 1, 1)
    assert found["options"]["iterations"] == 3
    assert not {"threads", "seed"} & set(found["options"])
    with h5py.File(tmp_path / "s.h5") as file:  # the last group has what is left
        assert file["batch"][()].tolist() == np.repeat([4, 5], 10).tolist()


@pytest.mark.parametrize(("shard", "count"), [(2, 2), (-1, 2), (0, 7), (0, 0)])
def test_shards_that_there_cannot_be(teacher, tmp_path, shard, count):
    with pytest.raises(InputError, match=r"6 groups of batches; use 0 <= shard < shards <= 6"):
        run(teacher, tmp_path / "s.h5", quick(), shard, count)
    assert not (tmp_path / "s.h5").exists()


def test_no_real_data_can_be_read(teacher, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from dfshield.options.sources import Inversion\n"
        "from dfshield.sources import inversion\n"
        "genuine = inversion.ModelInversion.group\n"
        "def group(self, *rest):\n"
        "    try: import dfshield.data.sets\n"
        "    except RuntimeError as error: print('refused:', error)\n"
        "    return genuine(self, *rest)\n"
        "inversion.ModelInversion.group = group\n"
        "inversion.run(Path(sys.argv[1]), Path(sys.argv[2]), Inversion(images=10, batch=10, iterations=1))\n"
        "print(sorted(m for m in sys.modules if m.startswith('dfshield.data') or m == 'sklearn'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(teacher), str(tmp_path / "s.h5")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused: synthesize is data-free: it must not open real data (dfshield.data)\n[]\n"


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "paper", "repo"), [("randomise", "all", "class-feature"), ("batch", 200, 250)])
def test_profiles_differ_in(option, paper, repo):
    for profile, value in (("paper", paper), ("repo", repo)):
        section = dict(PROFILES[profile].get("synthesize", {}))
        own = section.pop("inversion", {})
        assert getattr(Inversion(**section, **own), option) == value
    assert set(PROFILES["repo"]["synthesize"]) == {"inversion", "batch"}


def test_the_papers_numbers():
    options = Inversion()
    assert (options.images, options.batch, options.iterations, options.lr) == (60_000, 200, 2000, 0.1)
    assert (options.alpha_class, options.alpha_feature, options.alpha_prior) == (1, 1, 2.5e-5)
    assert (options.coefficients, options.shift, options.roll, options.storage) == ("dss", 0, 2, "float32")
    assert options.groups == 300
