"""Jobs of every table of the paper's grid, counted by hand."""

# By hand from the paper: its grid has 3 data sets and 3 models, 6 shards, one seed. Each ledger has the clean accuracy
# besides the attack's. Table 4: 9 teachers, 9 times 6 shards, students Ours and Original and of four rivals, 7 methods,
# 2 attacks.
# Table 7: 2 data sets, 1 model, 6 losses, 2 attacks; tables 16 and 17: 1 data set, 3 models.
# Table 8: 3 models, 2 sources, 4 recipes, 1 attack. Table 23: 2 models, 7 values of B, 2 attacks. Table 24: 2 data
# sets, 11 values of tau, 2 attacks. Tables 25 and 26: 3 models, 6 x 6 weights, 1 attack. Values that the base recipe
# has need no training of their own, so they change no count. Table 6: 1 model, 6 sources of which 3 are synthetic and 3
# augmented, a student and a record each, 2 attacks; and 2 sources by a generator. Tables 19 and 20: 3 models, the same
# but for the sources of IntraQ and by generators.
# Tables 1 and 12: 4 medical data sets and 2 models, students Public and Ours and of four rivals, 2 attacks. Table 11: 8
# sets and 2 models, clean images. Table 18: 7 sets and 2 models, 3 students. Table 5: the general grid, Ours and AIT.
# Table 3: 4 medical data sets and 2 models, the teacher behind three defences, of which two are fitted, and Ours, 2
# attacks. Table losses: 1 data set, 3 models, 20 losses, 2 attacks.
# Tables 9, 10 and 21: 2 data sets and 3 models, Ours, 6 attacks; table 22: 4 medical sets and 1 model. Table attacks: 1
# data set, 3 models, Undefended, Ours and Original, 22 attacks, of which one transfers from the teacher.
# Checks: one of each model that both PGD-10 and AutoAttack attack, in whatever table: half of the attacks where a table
# has both. A table with PGD-10 alone makes AutoAttack's ledgers of such models: of one recipe of DSS in figure 5 and
# tables 9, 10, 25 and 26, of three of the four pairs in table 8.
# Tables of distribution transfer: of CIFAR-10's models 1, 2 and 2, the teacher alone and behind the defence, which is
# fitted, and 4 students on real images; 2 attacks, 1, and 5 corruptions. 5 sizes of 2 attacks; 5 fits. Original at
# 8/255, which is AT, is table 15's, so its checks and the 2 attacks that they read come along.
# Table epsilons: 3 models, Undefended and Ours, PGD-10 at 5 sizes; at that of table 4 its checks come along, with the
# AutoAttack ledgers that they read.
# Table landscape: 3 models, 4 students, PGD-10 and a landscape of each; each has its checks in other tables, and the
# AutoAttack ledgers that they read.
# Table coefficients: 3 models, 4 synthetic sources and the real images, a record of each.
# Tables 14 and 15: 3 models at 4 sizes, Original, Ours and four rivals. Figure 5: 3 models, 6 shares of the images.
PAPER = {
    "table1": {
        **{"teacher": 8, "synthesize": 48, "merge": 8, "public": 8},
        **{"train": 16, "cotrain": 32, "attack": 96, "checks": 48, "table": 1},
    },
    "table2": {"table": 1},
    "table3": {
        "teacher": 8,
        "synthesize": 48,
        "merge": 8,
        "train": 8,
        "defend": 16,
        "attack": 64,
        "checks": 32,
        "table": 1,
    },
    "losses": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 63, "attack": 126, "checks": 63, "table": 1},
    "table5": {
        "teacher": 9,
        "synthesize": 54,
        "merge": 9,
        "train": 9,
        "cotrain": 9,
        "attack": 36,
        "checks": 18,
        "table": 1,
    },
    "table11": {"teacher": 16, "attack": 16, "table": 1},
    "table12": {
        **{"teacher": 8, "synthesize": 48, "merge": 8, "public": 8},
        **{"train": 16, "cotrain": 32, "attack": 96, "checks": 48, "table": 1},
    },
    "table14": {
        **{"teacher": 3, "synthesize": 18, "merge": 3, "export": 3},
        **{"train": 24, "cotrain": 48, "attack": 144, "checks": 72, "table": 1},
    },
    "table15": {
        **{"teacher": 3, "synthesize": 18, "merge": 3, "export": 3},
        **{"train": 24, "cotrain": 48, "attack": 144, "checks": 72, "table": 1},
    },
    "table18": {
        **{"teacher": 14, "synthesize": 84, "merge": 14, "export": 14, "public": 14},
        **{"train": 42, "attack": 84, "checks": 42, "table": 1},
    },
    "figure5": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 18, "attack": 21, "checks": 3, "table": 1},
    "epsilons": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 3, "attack": 36, "checks": 6, "table": 1},
    "table6": {
        **{"teacher": 1, "synthesize": 18, "merge": 3, "generate": 2, "augment": 3, "diversity": 8},
        **{"train": 8, "attack": 16, "checks": 8, "table": 1},
    },
    "table19": {
        **{"teacher": 3, "synthesize": 36, "merge": 6, "augment": 9, "diversity": 15},
        **{"train": 15, "attack": 30, "checks": 15, "table": 1},
    },
    "table20": {
        **{"teacher": 3, "synthesize": 36, "merge": 6, "augment": 9, "diversity": 15},
        **{"train": 15, "attack": 30, "checks": 15, "table": 1},
    },
    "table4": {
        **{"teacher": 9, "synthesize": 54, "merge": 9, "export": 9},
        **{"train": 18, "cotrain": 36, "attack": 126, "checks": 63, "table": 1},
    },
    "table7": {"teacher": 2, "synthesize": 12, "merge": 2, "train": 12, "attack": 24, "checks": 12, "table": 1},
    "table16": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 18, "attack": 36, "checks": 18, "table": 1},
    "table17": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 18, "attack": 36, "checks": 18, "table": 1},
    "table8": {"teacher": 3, "synthesize": 36, "merge": 6, "train": 12, "attack": 21, "checks": 9, "table": 1},
    "table9": {"teacher": 6, "synthesize": 36, "merge": 6, "train": 6, "attack": 42, "checks": 6, "table": 1},
    "table10": {"teacher": 6, "synthesize": 36, "merge": 6, "train": 6, "attack": 42, "checks": 6, "table": 1},
    "table21": {"teacher": 6, "synthesize": 36, "merge": 6, "train": 6, "attack": 36, "checks": 6, "table": 1},
    "table22": {"teacher": 4, "synthesize": 24, "merge": 4, "train": 4, "attack": 24, "checks": 4, "table": 1},
    "attacks": {
        "teacher": 3,
        "synthesize": 18,
        "merge": 3,
        "export": 3,
        "train": 6,
        "attack": 195,
        "checks": 9,
        "table": 1,
    },
    "table23": {"teacher": 2, "synthesize": 12, "merge": 2, "train": 14, "attack": 28, "checks": 14, "table": 1},
    "table24": {"teacher": 2, "synthesize": 12, "merge": 2, "train": 22, "attack": 44, "checks": 22, "table": 1},
    "transfer-table1": {
        **{"teacher": 1, "synthesize": 6, "merge": 1, "export": 1, "train": 4, "defend": 1},
        **{"attack": 14, "checks": 1, "table": 1},
    },
    "transfer-table2": {"teacher": 2, "synthesize": 12, "merge": 2, "defend": 2, "attack": 2, "table": 1},
    "transfer-epsilons": {
        **{"teacher": 2, "synthesize": 12, "merge": 2, "defend": 2},
        **{"attack": 44, "checks": 2, "table": 1},
    },
    "transfer-times": {"teacher": 2, "synthesize": 12, "merge": 2, "defend": 10, "attack": 20, "table": 1},
    "transfer-table3": {
        **{"teacher": 2, "synthesize": 12, "merge": 2, "export": 2, "train": 8, "defend": 2},
        **{"attack": 60, "table": 1},
    },
    "landscape": {
        **{"teacher": 3, "synthesize": 18, "merge": 3, "train": 12, "landscape": 12},
        **{"attack": 24, "checks": 12, "table": 1},
    },
    "coefficients": {"teacher": 3, "synthesize": 72, "merge": 12, "export": 3, "diversity": 15, "table": 1},
    "table25": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 108, "attack": 111, "checks": 3, "table": 1},
    "table26": {"teacher": 3, "synthesize": 18, "merge": 3, "train": 108, "attack": 111, "checks": 3, "table": 1},
}
