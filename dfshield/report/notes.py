"""Flags of a figure: their marks and what their footnotes say."""

from collections.abc import Iterable

NOTES = {
    "diverged": ("†", "did not converge: a loss or an output was not finite, or one class is predicted for all images"),
    "did-not-converge": ("†", "did not converge"),
    "not-data-free": ("‡", "trained on real images, so not data-free"),
    "reduced-classes": (
        "§",
        "AutoAttack with fewer target classes than its standard: the data set has too few classes",
    ),
    "masked-gradients": ("¶", "sign of masked gradients: the figure may overstate the robustness"),
    "randomised": ("‖", "the model's output varies between passes: the figure may overstate the robustness"),
    "softmax-outputs": ("", "the model gives probabilities, not logits, which blunts gradient attacks"),
    "did-not-converge-per-table14": ("", "marked † in the paper's Table 14 though not in Table 4"),
    "differs-from-table14": ("", "the paper's Table 14 prints other values for the same setting"),
    "from-table14": ("", "from the paper's Table 14"),
    "from-table15": ("", "from the paper's Table 15"),
    "autoattack-above-pgd": ("", "as printed: AutoAttack accuracy above PGD accuracy"),
    "pgd-above-clean": ("", "as printed: PGD accuracy above clean accuracy"),
    "higher-without-gradrefine": ("", "the paper's Tables 7 and 16 print 65.66 without GradRefine"),
    "differs-from-table4": ("", "the paper's Table 4 prints other values for the same setting"),
    "tau0-is-not-plain": (
        "i",
        "differs from training without GradRefine (Table 7), though τ = 0 is said to mask nothing",
    ),
    "constant-predictor": ("", "clean and robust accuracy equal one class's share: the model answers a single class"),
    "did-not-converge-per-table1": ("", "marked † in the paper's Table 1 though not in Table 18"),
    "misprinted": ("", "misprinted in the paper"),
    "gain-misprinted": ("", "the paper prints a wrong gain beside it"),
    "clean-equals-one-class": ("", "equals one class's share, as if the model answered a single class"),
    "broken-constant-predictor": (
        "",
        "AutoAttack breaks what by clean and PGD accuracy answers a single class: ties, or outputs not quite constant",
    ),
    "near-or-below-majority": ("", "hardly or not above what always answering the most frequent class gives"),
    "pgd-far-above-autoattack": ("", "PGD accuracy far above: a sign of masked gradients or of overfitting to PGD"),
    "lower-with-gradrefine": ("", "the paper's Table 4 prints 62.66 with GradRefine"),
    "lower-than-linf": ("", "lower than in the paper's Table 4, where 4/255 bounds every pixel"),
    "below-augmentation": ("", "lower than with at least one of Mixup, Cutout and CutMix"),
}
"""Flag to mark and footnote; without a mark of its own a flag gets the next letter. Detail may follow a colon."""


def notes(flags: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Mark and footnote of each flag, in the order of `NOTES`; unknown flags speak for themselves."""
    found = {}
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for flag in sorted(set(flags), key=lambda flag: (_rank(flag), flag)):
        name, _, detail = flag.partition(":")
        mark, text = NOTES.get(name, ("", name.replace("-", " ")))
        found[flag] = (mark or next(letters, "*"), f"{text} ({detail.strip()})" if detail.strip() else text)
    return found


def _rank(flag: str) -> int:
    name = flag.partition(":")[0]
    return list(NOTES).index(name) if name in NOTES else len(NOTES)
