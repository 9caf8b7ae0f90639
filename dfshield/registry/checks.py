"""Robustness checks: what every evaluation is asked before its figures are believed, in the order of the record."""

from dfshield.registry.entry import Entry

PACKAGE = "dfshield.evaluation.checks"

CHECKS = {
    "worst-case": Entry(
        f"{PACKAGE}.records:worst_case",
        "Worst case",
        about="the other attacks break hardly an image that AutoAttack left",
    ),
    "steps": Entry(f"{PACKAGE}.convergence:steps", "Steps", about="twice the steps of PGD change nothing"),
    "restarts": Entry(f"{PACKAGE}.convergence:restarts", "Restarts", about="twice the restarts of PGD change nothing"),
    "eps-curve": Entry(
        f"{PACKAGE}.convergence:eps_curve", "ε curve", about="robust accuracy falls with ε, and to 0 % without bound"
    ),
    "single-step": Entry(f"{PACKAGE}.comparisons:single_step", "Single step", about="FGSM is no stronger than PGD"),
    "black-box": Entry(
        f"{PACKAGE}.comparisons:black_box", "Black box", about="Square is no stronger than white-box attacks"
    ),
    "transfer": Entry(
        f"{PACKAGE}.comparisons:transfer", "Transfer", about="PGD on another model is no stronger than PGD on this one"
    ),
    "noise": Entry(f"{PACKAGE}.comparisons:noise", "Noise", about="random noise of size ε is no stronger than PGD"),
    "shattering": Entry(
        f"{PACKAGE}.gradients:shattering", "Shattering", about="input gradients agree with finite differences"
    ),
    "autoattack-flags": Entry(
        f"{PACKAGE}.records:autoattack_flags",
        "AutoAttack's flags",
        about="the attacks raised no flag of masked gradients",
    ),
    "binarisation": Entry(
        f"{PACKAGE}.binarisation:binarisation",
        "Binarisation",
        about="PGD solves the task that is known to have a solution (Zimmermann et al. 2022)",
    ),
    "last-epoch": Entry(
        f"{PACKAGE}.records:last_epoch", "Last epoch", about="the last epochs are about as robust as the best ones"
    ),
}
