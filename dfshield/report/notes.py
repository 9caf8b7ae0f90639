"""Marks and footnotes of flags: of our own results here, of the paper's print in ``report/paper/notes.csv``."""

from collections.abc import Iterable

from dfshield.evaluation.doubts import DOUBTS
from dfshield.report.published import printed_notes

Marks = dict[str, tuple[str, str]]
"""Mark and footnote by flag."""

NOTES: Marks = {
    "diverged": ("†", "did not converge: a loss or an output was not finite, or one class is predicted for all images"),
    "not-data-free": ("‡", "trained on real images, so not data-free"),
    "reduced-classes": (
        "§",
        "AutoAttack with fewer target classes than its standard: the data set has too few classes",
    ),
    "masked-gradients": ("¶", "sign of masked gradients: the figure may overstate the robustness"),
    "certified-above-attacked": ("⁂", "certified accuracy is above that under attack within the same radius"),
    "failed-check": ("¤", "a robustness check failed"),
    "randomised": ("‖", "the model's output varies between passes: the figure may overstate the robustness"),
    "classes-untrained": ("", "no training image had the label of some classes"),
    "softmax-outputs": ("", "the model gives probabilities, not logits, which blunts gradient attacks"),
    **{flag: ("", text) for flag, text in DOUBTS.items()},
}
"""Flags of our own results. A flag without a mark of its own gets the next letter; detail may follow a colon."""


def notes(flags: Iterable[str]) -> Marks:
    """Mark and footnote of each flag, in the order in which flags are listed; unknown flags speak for themselves.

    Flags with a mark of their own that differ in their detail share one footnote.
    """
    known = NOTES | printed_notes()
    ranks = {name: rank for rank, name in enumerate(known)}
    marks: Marks = {}
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    ordered = sorted(set(flags), key=lambda flag: (ranks.get(flag.partition(":")[0], len(ranks)), flag))
    for flag in ordered:
        name = flag.partition(":")[0]
        mark, text = known.get(name, ("", name.replace("-", " ")))
        alike = ordered if mark else [flag]
        details = [each.partition(":")[2].strip() for each in alike if each.partition(":")[0] == name]
        said = ", ".join(filter(None, details))
        marks[flag] = (mark or next(letters, "*"), f"{text} ({said})" if said else text)
    return marks
