"""Common corruptions: fifteen kinds of noise, blur, weather and digital damage, each of five severities.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019. The
parameters are those of CIFAR-10-C, for images of 32 pixels. Images of another size have lengths in pixels scaled by
their shorter side over 32; a shift of whole pixels stays at least one.

Images are arrays (H,W,C) of float64 in [0,1], of any number of channels; three are taken for RGB.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dfshield.attacks.base import Problem
from dfshield.core.rng import generator
from dfshield.options.attacks_corruption import Corruption

Array = NDArray[Any]
SIDE = 32
"""Pixels of a side of the images that the parameters are for."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""
FINE = 8
"""Points along a pixel at which a blur's disc is sampled."""


def corruption(problem: Problem, options: Corruption) -> Tensor:
    """Every image corrupted by its kind and severity, rounded to eight bits; the model is not asked.

    What is drawn depends on the seed and the content of an image alone, so all models see the same images.

    Differs from the publication: frost is a texture that is drawn, not a photograph; the fog's map is interpolated
    noise of several sizes, not the diamond-square algorithm; motion blur is symmetric; glass blur exchanges pixels in
    all directions.
    """
    return torch.stack([corrupted(image, options) for image in problem.x]) if len(problem.x) else problem.x.clone()


def corrupted(image: Tensor, options: Corruption) -> Tensor:
    """One image (C,H,W) in [0,1] corrupted; of the same form, all values multiples of 1/255."""
    content = hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
    chosen = generator("corruption", options.seed, content)
    kinds, severities = (int(torch.randint(n, (), generator=chosen)) for n in (len(CORRUPTIONS), 5))
    name = list(CORRUPTIONS)[kinds] if options.kind == "all" else options.kind
    severity = options.severity or severities + 1
    random = np.random.default_rng(generator("corruption", options.seed, content, name, severity).initial_seed())
    kind = CORRUPTIONS[name]
    pixels = image.detach().cpu().double().permute(1, 2, 0).numpy()
    found = kind.apply(pixels, random, *kind.severities[severity - 1])
    return torch.from_numpy(_levels(found)).permute(2, 0, 1).contiguous().to(image) / 255


def _levels(x: Array) -> Array:
    """Pixels in [0,1] as levels of eight bits, those beyond clipped."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _scale(x: Array) -> float:
    return min(x.shape[:2]) / SIDE


# --- helpers ---------------------------------------------------------------------------------------------------------


def _sampled(x: Array, rows: Array, columns: Array) -> Array:
    """An image at the places (H,W) `rows` and `columns`, interpolated linearly and mirrored beyond its border."""
    from scipy.ndimage import map_coordinates  # not at the top: it takes long to import

    channels = [map_coordinates(x[..., c], (rows, columns), order=1, mode="mirror") for c in range(x.shape[2])]
    return np.stack(channels, axis=-1)


def _grid(x: Array) -> tuple[Array, Array]:
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]].astype(float)
    return rows, columns


def _smoothed(x: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="mirror"))


def _disc(radius: float, sigma: float) -> Array:
    """A disc of `radius` pixels, smoothed by a Gaussian of `sigma`, as weights of pixels that add up to one."""
    from scipy.ndimage import gaussian_filter

    reach = int(np.ceil(radius + 3 * sigma))
    place = (np.arange((2 * reach + 1) * FINE) + 0.5) / FINE - (reach + 0.5)
    inside = (np.hypot(place[:, None], place[None]) <= max(radius, 1 / FINE)).astype(float)
    soft = gaussian_filter(inside, sigma * FINE, mode="constant")
    weights = soft.reshape(2 * reach + 1, FINE, 2 * reach + 1, FINE).sum((1, 3))
    return np.asarray(weights / weights.sum())


def _moved(x: Array, radius: float, sigma: float, angle: float) -> Array:
    """Blur along a line at `angle` (radians), by a Gaussian of `sigma` cut off at `radius`, in pixels of the image."""
    rows, columns = _grid(x)
    steps = np.linspace(-radius, radius, 2 * int(np.ceil(2 * radius)) + 1)
    weights = np.exp(-((steps / sigma) ** 2) / 2)
    lines = (_sampled(x, rows + t * np.sin(angle), columns + t * np.cos(angle)) for t in steps)
    return np.asarray(sum(w * line for w, line in zip(weights / weights.sum(), lines, strict=True)))


def _zoomed(x: Array, factor: float) -> Array:
    """An image enlarged by `factor` about its centre."""
    rows, columns = _grid(x)
    middle = [(length - 1) / 2 for length in x.shape[:2]]
    return _sampled(x, middle[0] + (rows - middle[0]) / factor, middle[1] + (columns - middle[1]) / factor)


def _clouds(x: Array, random: Generator, decay: float) -> Array:
    """A map (H,W,1) from 0 to 1 of noise of all sizes; every halving of the size divides its height by `decay`."""
    total, cells, height = np.zeros((*x.shape[:2], 1)), 1, 1.0
    while cells <= max(x.shape[:2]):
        rows, columns = (np.linspace(0, cells, length) for length in x.shape[:2])
        coarse = random.uniform(size=(cells + 1, cells + 1, 1))
        total += height * _sampled(coarse, *np.meshgrid(rows, columns, indexing="ij"))
        cells, height = 2 * cells, height / decay
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-12))


# --- the fifteen kinds -----------------------------------------------------------------------------------------------


def _gaussian_noise(x: Array, random: Generator, deviation: float) -> Array:
    return x + random.normal(scale=deviation, size=x.shape)


def _shot_noise(x: Array, random: Generator, photons: float) -> Array:
    return random.poisson(x * photons) / photons


def _impulse_noise(x: Array, random: Generator, share: float) -> Array:
    hit, white = random.uniform(size=x.shape) < share, random.uniform(size=x.shape) < 0.5
    return np.where(hit, white.astype(float), x)


def _defocus_blur(x: Array, random: Generator, radius: float, sigma: float) -> Array:
    from scipy.ndimage import convolve

    weights = _disc(radius * _scale(x), sigma * _scale(x))
    return np.asarray(convolve(x, weights[..., None], mode="mirror"))


def _glass_blur(x: Array, random: Generator, sigma: float, reach: float, rounds: int) -> Array:
    x, most = _smoothed(x, sigma * _scale(x)), max(1, round(reach * _scale(x)))
    height, width = x.shape[:2]
    for _ in range(rounds):
        moves = random.integers(-most, most + 1, size=(height, width, 2))
        for row in range(height - most - 1, most - 1, -1):
            for column in range(width - most - 1, most - 1, -1):
                down, right = moves[row, column]
                here, there = (row, column), (row + down, column + right)
                x[here], x[there] = x[there].copy(), x[here].copy()
    return _smoothed(x, sigma * _scale(x))


def _motion_blur(x: Array, random: Generator, radius: float, sigma: float) -> Array:
    angle = np.deg2rad(random.uniform(-45, 45))
    return _moved(x, radius * _scale(x), sigma * _scale(x), angle)


def _zoom_blur(x: Array, random: Generator, largest: float) -> Array:
    factors = np.arange(1, largest, 0.01)
    return np.asarray((x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1))


def _snow(
    x: Array,
    random: Generator,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Array:
    layer = _zoomed(random.normal(mean, deviation, size=(*x.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(layer < least, 0, layer), 0, 1)
    flakes = _moved(flakes, radius * _scale(x), sigma * _scale(x), np.deg2rad(random.uniform(-135, -45)))
    grey = (x @ np.array(LUMA) if x.shape[2] == 3 else x.mean(2))[..., None]
    pale = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def _frost(x: Array, random: Generator, kept: float, ice: float) -> Array:
    ridges = 1 - np.abs(2 * _clouds(x, random, 1.5) - 1)
    return kept * x + ice * ridges


def _fog(x: Array, random: Generator, depth: float, decay: float) -> Array:
    brightest = x.max()
    return (x + depth * _clouds(x, random, decay)) * brightest / (brightest + depth)


def _brightness(x: Array, random: Generator, gain: float) -> Array:
    """The value in HSV raised, hue and saturation kept; a black pixel becomes grey."""
    value = x.max(2, keepdims=True)
    raised = np.minimum(value + gain, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def _contrast(x: Array, random: Generator, kept: float) -> Array:
    mean = x.mean((0, 1), keepdims=True)
    return kept * (x - mean) + mean


def _elastic_transform(x: Array, random: Generator, height: float, sigma: float, shift: float) -> Array:
    """The parameters are shares of the image's side: displacements, their smoothness, and the affine map's reach."""
    from scipy.ndimage import gaussian_filter

    side = min(x.shape[:2])
    rows, columns = _grid(x)
    middle, third = np.array(x.shape[:2]) / 2, side / 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + random.uniform(-shift * side, shift * side, size=(3, 2))
    places = np.linalg.solve(np.c_[moved, np.ones(3)], corners)
    rows, columns = np.moveaxis(np.stack((rows, columns, np.ones_like(rows)), -1) @ places, -1, 0)
    bends = random.uniform(-1, 1, size=(2, *x.shape[:2]))
    down, right = (height * side * gaussian_filter(bend, sigma * side, mode="mirror") for bend in bends)
    return _sampled(x, rows + down, columns + right)


def _pixelate(x: Array, random: Generator, share: float) -> Array:
    height, width = x.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    pictures = [Image.fromarray(x[..., c].astype(np.float32)) for c in range(x.shape[2])]
    coarse = [picture.resize(small, Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(one.resize((width, height), Image.Resampling.BOX)) for one in coarse], axis=-1)


def _jpeg_compression(x: Array, random: Generator, quality: int) -> Array:
    levels = _levels(x)
    pictures = [levels] if x.shape[2] == 3 else [levels[..., c] for c in range(x.shape[2])]
    decoded = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return (decoded[0] if x.shape[2] == 3 else np.stack(decoded, axis=-1)) / 255


class Kind(NamedTuple):
    """A kind of corruption."""

    apply: Callable[..., Array]
    """``(image, random, *parameters)`` to an image, whose values may leave [0,1]."""
    severities: tuple[tuple[Any, ...], ...]
    """Parameters by severity, from 1 to 5; lengths are pixels of an image of `SIDE`."""


def _each(*values: float) -> tuple[tuple[Any, ...], ...]:
    return tuple((value,) for value in values)


CORRUPTIONS = {
    "gaussian-noise": Kind(_gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": Kind(_shot_noise, _each(500, 250, 100, 75, 50)),
    "impulse-noise": Kind(_impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus-blur": Kind(_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass-blur": Kind(_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion-blur": Kind(_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": Kind(_zoom_blur, _each(1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": Kind(
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Kind(_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Kind(_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Kind(_brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind(_contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic-transform": Kind(
        _elastic_transform, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    ),
    "pixelate": Kind(_pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg-compression": Kind(_jpeg_compression, _each(80, 65, 58, 50, 40)),
}
"""The kinds in the order of the publication: noise, blur, weather, digital."""
