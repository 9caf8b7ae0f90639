"""Lines of text as images, upright and upside down: exact labels for a classifier of the direction of text."""

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 48, 192
FONTS = [f for f in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVu*")) if "Display" not in f.name]
"""The text faces that Matplotlib ships: sans, serif and monospaced, upright and slanted, light and bold."""
TEXT = """
account address amount answer article autumn balance bank battery between birthday bottle bread bridge building
calendar camera card centre certificate child church city clinic coffee company contract copy corner country credit
customer date dealer delivery dentist department discount doctor door dollar dress driver east electric engine entry
exit factory family farmer field figure film finger fire flight flower forest friend garden glass green ground guest
harbour heart hospital hotel house hundred insurance invoice island journey kitchen language lawyer letter library
licence lunch machine market medicine meeting message minute money month morning mountain museum name nature night
north number office order page paper parcel passport patient pepper person phone plant police price program quality
quarter question receipt report return river room school science season service shop signature station street sugar
summer surgery table ticket total tower traffic train travel valid village visitor water weather week winter
"""
WORDS = TEXT.split()


def lines(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (count,48,192,3) and classes (count,): 0 upright, 1 turned by 180 degrees, as many of each.

    Words and numbers at random, in a typeface, a size and a pair of colours at random.
    """
    random = np.random.default_rng(seed)
    turned = random.permutation(np.arange(count) % 2)
    return np.stack([_line(random, bool(turn)) for turn in turned]), turned


def _line(random: np.random.Generator, turned: bool) -> NDArray[np.uint8]:
    """One image (48,192,3)."""
    words = [str(random.choice(WORDS) if random.random() < 0.8 else random.integers(10, 10_000)) for _ in range(5)]
    words[0] = str(random.choice([words[0], words[0].capitalize(), words[0].upper()]))
    dark, light = random.integers(0, 100, 3), random.integers(156, 256, 3)
    ink, paper = (dark, light) if random.random() < 0.7 else (light, dark)
    font = ImageFont.truetype(str(random.choice(FONTS)), int(random.integers(22, 36)))
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(map(int, paper)))
    place = int(random.integers(2, 10)), HEIGHT // 2
    ImageDraw.Draw(image).text(place, " ".join(words), tuple(map(int, ink)), font, "lm")
    return np.asarray(image.rotate(180) if turned else image)
