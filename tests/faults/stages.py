"""Every stage at the smallest scale: its command, what it writes, and files for it to read."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import program
import yaml
from support.runs import fake_run

from dfshield.planning import frozen
from dfshield.planning.config import check_config
from dfshield.planning.paths import HARDEN, STUDENT
from dfshield.planning.plan import Plan
from dfshield.planning.stages import STAGES
from dfshield.report.content import measurements

TEACHER = "--teacher {world}/teacher.safetensors"
SYNTHESIS = "--images 120 --batch 10 --iterations 12 --roll 0 --group 2 --shards 2 --seed 3 --state state"
SPECS = Path(__file__).parents[2] / "config" / "tables.yaml"


@dataclass(frozen=True)
class Case:
    """A stage to disturb: `{world}` in its command is the folder of what it reads."""

    name: str
    words: str
    outputs: tuple[str, ...]
    """Files that it writes into its folder."""
    inside: bool = False
    """It works in a copy of the folder `run` of what it reads, not in an empty one."""

    @property
    def resumes(self) -> bool:
        """Whether it keeps state."""
        return "--state" in self.words

    def command(self, world: Path) -> str:
        """The words of its command."""
        return self.words.format(world=world)

    def prepare(self, world: Path, folder: Path) -> Path:
        """A new folder to run it in."""
        if self.inside:
            shutil.copytree(world / "run", folder)
        else:
            folder.mkdir(parents=True)
        return folder


def case(name: str, words: str, *outputs: str, inside: bool = False) -> Case:
    """A stage whose command is `words` on the CPU, if it has a device."""
    stage = name.partition(" ")[0]
    cpu = " --device cpu --threads 1" if STAGES[stage].options else ""
    return Case(name, f"{stage} {words}{cpu}", outputs, inside)


CASES = (
    case(
        "teacher",
        "--dataset digits --model cnn-s --epochs 4 --batch 200 --out teacher.safetensors --state state",
        "teacher.safetensors",
    ),
    case("synthesize", f"{TEACHER} --out shard-0.h5 --shard 0 {SYNTHESIS}", "shard-0.h5"),
    case("synthesize the rest", f"{TEACHER} --out shard-1.h5 --shard 1 {SYNTHESIS}", "shard-1.h5"),
    case("merge", "{world}/shard-1.h5 {world}/shard-0.h5 --out data.h5", "data.h5"),
    case(
        "generate",
        f"{TEACHER} --out generated.h5 --epochs 3 --iterations 3 --batch 20 --images 60 --width 0.05 --state state",
        "generated.h5",
    ),
    case("augment", "--data {world}/data.h5 --out augmented.h5", "augmented.h5"),
    case("export", f"{TEACHER} --dataset digits --out real.h5", "real.h5"),
    case("public", f"{TEACHER} --dataset photographs --images 100 --out public.h5", "public.h5"),
    case(
        "train",
        f"{TEACHER} --data {{world}}/data.h5 --out student.safetensors --metrics metrics.csv --state state"
        " --epochs 4 --batch 20 --aggregate 2 --attack-steps 2 --holdout 20 --lr 0.02",
        "student.safetensors",
        "metrics.csv",
    ),
    case(
        "cotrain",
        f"{TEACHER} --out rival.safetensors --metrics rival.csv --images-out images.h5 --state state --method dast"
        " --epochs 3 --iterations 3 --batch 20 --generator-width 0.05 --kept-images 60 --attack-steps 2",
        "rival.safetensors",
        "rival.csv",
        "images.h5",
    ),
    case(
        "attack",
        "--model {world}/student.safetensors --evaluation {world}/images.npz --out ledger.h5 --state state"
        " --attack pgd --steps 20 --chunk 25 --threat linf:2/16",
        "ledger.h5",
    ),
    case(
        "defend",
        f"--model {{world}}/student.safetensors {TEACHER} --data {{world}}/data.h5 --out defence.safetensors"
        " --threat linf:2/16 --defence thermometer --epochs 2 --batch 20",
        "defence.safetensors",
    ),
    case(
        "certify",
        "--model {world}/student.safetensors --evaluation {world}/images.npz --out certificates.json --n 200"
        " --sigma 0.1 --limit 20",
        "certificates.json",
        "certificates.csv",
    ),
    case(
        "detect",
        "--model {world}/teacher.safetensors --data {world}/data.h5 --evaluation {world}/images.npz"
        " --out detection.json --detector squeezing --threat linf:2/16 --steps 10",
        "detection.json",
    ),
    case(
        "checks",
        "--model {world}/student.safetensors --evaluation {world}/images.npz --out checks.json --threat linf:2/16"
        " --limit 20 --steps 5 --queries 50 --inner 50",
        "checks.json",
    ),
    case(
        "landscape",
        "--model {world}/student.safetensors --evaluation {world}/images.npz --out landscape.json --threat linf:2/16"
        " --points 5 --pairs 2 --limit 20",
        "landscape.json",
    ),
    case("diversity", f"{TEACHER} --data {{world}}/data.h5 --out diversity.json --bins 10", "diversity.json"),
    case(
        "table",
        "table4 --config results/demo/config.yaml --out results/table4.csv",
        *(f"results/table4.{ending}" for ending in ("csv", "md", "tex", "html")),
        inside=True,
    ),
    case(
        "table of formulas",
        "table2 --config results/demo/config.yaml --out results/table2.csv",
        *(f"results/table2.{ending}" for ending in ("csv", "md", "tex", "html")),
        inside=True,
    ),
    case(
        "cost",
        "--config results/demo/config.yaml --out results/cost.csv",
        *(f"results/cost.{ending}" for ending in ("csv", "md", "tex", "html")),
        inside=True,
    ),
    case(
        "card",
        "mine --config results/own/config.yaml --student results/own/harden/mine/dss/dfshield/linf-8-255/seed-0/"
        "student.safetensors --out results/harden/mine",
        *(
            f"results/harden/mine/{name}"
            for name in (
                *("model.safetensors", "report.csv", "report.json", "MODEL_CARD.md"),
                *(f"{picture}.{ending}" for picture in ("accuracy", "broken") for ending in ("png", "svg")),
                "synthetic.png",
            )
        ),
        inside=True,
    ),
)
"""Every stage; a stage comes after those whose files it reads."""

GRID = {"name": "demo", "datasets": {"digits": {"models": ["cnn-s"], "threat": "linf:8/255"}}}
MINE = {
    "name": "own",
    "tables": str(SPECS),
    "harden": {
        "mine": {
            **{"factory": "my_model:build", "weights": "w.pt", "input_shape": [1, 8, 8], "classes": 10},
            **{"mean": [0.3], "std": [0.38], "threat": "linf:8/255", "evaluation": {"file": "eval.npz"}},
        }
    },
}


def make_run(folder: Path) -> None:
    """In the current folder, `folder`: the files of tables and of a hardened model, made without computing anything."""
    specs = folder / "tables.yaml"
    known = yaml.safe_load(SPECS.read_text(encoding="utf-8"))
    tables = {name: known[name] for name in ("table2", "table4")}
    tables["table4"]["rows"] = [row for row in known["table4"]["rows"] if row["method"] in ("Undefended", "Ours")]
    specs.write_text(yaml.safe_dump(tables, sort_keys=False), encoding="utf-8")
    grid = Plan.of(check_config(GRID | {"tables": str(specs)}))
    fake_run(grid, grid.cells("table4"))
    for name in measurements(grid):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("s\th:m:s\n2.5\t0:00:02\n", encoding="utf-8")
    mine = Plan.of(check_config(MINE))
    fake_run(mine, mine.harden_cells("mine"))
    for plan in (grid, mine):
        frozen.keep(frozen.folder_of(plan.config.name), frozen.texts_of(plan.config))
    assert Path(mine.place(HARDEN, "mine", source="dss", recipe="dfshield").path(STUDENT)).is_file()


def make_world(world: Path) -> dict[str, dict[str, bytes]]:
    """Run every stage undisturbed in `world`; by case what it wrote. Its state is kept in `state/NAME` of `world`."""
    (world / "run").mkdir(parents=True)
    made = program.Fork(world / "run", lambda: make_run(world / "run")).wait()
    assert made.status == 0, made.said
    chosen = np.random.RandomState(0)
    x = np.round(chosen.rand(60, 8, 8, 1) * 255).astype(np.uint8)
    np.savez(world / "images.npz", x=x, y=np.arange(60) % 10)
    expected = {}
    for one in CASES:
        folder = one.prepare(world, world / "made" / one.name.replace(" ", "-"))
        ended = program.run(folder, one.command(world), program.kept_state)
        assert ended.status == 0, (one.name, ended.said)
        expected[one.name] = {name: (folder / name).read_bytes() for name in one.outputs}
        for name in one.outputs:
            if not one.inside:
                shutil.copy(folder / name, world)
    return expected
