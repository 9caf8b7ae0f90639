"""Edits of the program and its config, and the jobs of the tiny run of all tables that each repeats."""


def before(anchor: str, text: str) -> tuple[str, str]:
    """An edit that puts `text` before `anchor`."""
    return anchor, f"{text}{anchor}"


OTHER_LOSS = {
    "options/training.py": before(
        "class Trades(",
        """class Other(TrainOptions):
    loss: LossName = "other"
    push: Weight = 2.0


""",
    ),
    "registry/losses.py": before(
        '    "std": Loss(',
        '    "other": Loss("dfshield.training.losses:other", options="dfshield.options.training:Other"),\n',
    ),
    "training/losses.py": before(
        "def trades(", "def other(out, options):\n    return options.push * out.clean.sum()\n\n\n"
    ),
}
OTHER_ATTACK = {
    "options/attacks.py": before(
        "class AutoAttack(",
        """class Other(AttackOptions):
    attack: AttackName = "other"
    reach: Positive = 3
    greedy: bool = False


""",
    ),
    "registry/attacks.py": before(
        '    "autoattack": Attack(',
        '    "other": Attack("dfshield.attacks.pgd:other", options="dfshield.options.attacks:Other"),\n',
    ),
    "attacks/pgd.py": before(
        "def pgd(",
        "def other(problem, options):\n    return problem[1] if options.greedy else problem[1].clone()\n\n\n",
    ),
}
OTHER_DEFENCE = {
    "options/defences.py": before(
        "class Tte(",
        """class Other(DefendOptions):
    defence: DefenceName = "other"
    depth: Annotated[int, Field(ge=0)] = 3


""",
    ),
    "registry/defences.py": before(
        '    "tte": Defence(',
        '    "other": Defence("dfshield.defences.tte:Other", options="dfshield.options.defences:Other"),\n',
    ),
    "defences/tte.py": before(
        "class TestTimeEnsemble(",
        """class Other(Defence[DefendOptions]):
    def protect(self, model):
        return model


""",
    ),
}
HOME = "results/tiny/digits/cnn-s"
LEDGER = "none/none/none/seed-0/eval/{}@linf-8-16/ledger.h5"
NEW = {
    "recipes={other: {train: other, push: 3}}": {"dss/other/linf-8-16/seed-0/student.safetensors"},
    "protocols={other: {attack: other, reach: 2}}": {LEDGER.format("none/other")},
    "defences={other: {defend: other, depth: 2}}": {LEDGER.format("other/pgd10")},
}
"""Entries of a config by what is added to the program, and the file that each makes possible."""
RECIPE, PROTOCOL, DEFENCE = NEW
# What is edited in the program, what is added to the config, the jobs that run again.
EDITS = {
    # another loss, attack or defence, written, registered, with options of its own, and named by the config
    "new-loss-with-option": (OTHER_LOSS, RECIPE, {}),
    "new-attack": (OTHER_ATTACK, PROTOCOL, {}),
    "new-defence": (OTHER_DEFENCE, DEFENCE, {}),
    # words about the loss
    "comment": (
        {"training/losses.py": ("    robust = kl(", "    # warm\n    robust = kl(")},
        "",
        {},
    ),
    # the loss itself: the students that it trains, and what follows
    "loss": (
        {"training/losses.py": ("lambda2 * smooth", "lambda2 * smooth * 1.0")},
        "",
        {"train": 11, "defend": 1, "attack": 4 + 1 + 1 + 1 + 3 + 1 + 1 + 1 + 7 + 2 + 2}
        | {"checks": 2, "table": 26, "tables": 1},
    ),
    # one rival's own way: its students at two sizes, their attacks and the tables that have them
    "rival": (
        {"baselines/dast.py": ("beta * difference", "beta * difference * 1.0")},
        "",
        {"cotrain": 2, "attack": 2 + 1, "checks": 1, "table": 5, "tables": 1},
    ),
    # a default that the config leaves alone
    "default": (
        {"options/training.py": ('= 0.9\n    """SGD momentum"""', '= 0.8\n    """SGD momentum"""')},
        "",
        {"train": 21 + 2, "defend": 1, "attack": 6 + 3 + 1 + 3 + 5 + 4 + 1 + 1 + 8 + 2 + 2 + 2}
        | {"checks": 3, "landscape": 1, "table": 29 + 2, "tables": 1},
    ),
    # an augmentation: the set that it makes, what is trained on it and compared
    "augmentation": (
        {"sources/augmentation.py": ("share >= 0.5", "share > 0.5")},
        "",
        {"augment": 1, "train": 1, "attack": 1, "diversity": 1, "table": 3, "tables": 1},
    ),
    # a robustness check: tables 1, 3, 4, 8, 9, 10, 12, 13, 14, 15, 18, 21, 22, attacks, static-adaptive and epsilons
    # attack models of table 4
    "check": (
        {"evaluation/checks/comparisons.py": ("POINTS = 1.0", "POINTS = 1.5")},
        "",
        {"checks": 8, "table": 16, "tables": 1},
    ),
    "metric": (
        {"evaluation/coverage.py": ("topk(k + 1,", "topk(k + 2,")},
        "",
        {"diversity": 2, "table": 4, "tables": 1},
    ),
}
