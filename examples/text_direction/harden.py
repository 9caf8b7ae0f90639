"""Harden the classifier of text direction that the package rapidocr-onnxruntime ships, and measure what comes out.

pip install "dfshield[models,examples]"
python harden.py
"""

import argparse
from importlib.resources import files

from lines import HEIGHT, WIDTH, lines

import dfshield

MODEL = files("rapidocr_onnxruntime") / "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="time that the whole may take (default: 15)")
    parser.add_argument("--threat", default="linf:4/255", help="perturbations to withstand (default: linf:4/255)")
    parser.add_argument("--images", type=int, default=300, help="lines of text to evaluate on (default: 300)")
    parser.add_argument("--out", default="text-direction", help="folder of all that is made (default: text-direction)")
    given = parser.parse_args()
    result = dfshield.harden(
        str(MODEL),
        (3, HEIGHT, WIDTH),
        given.threat,
        given.minutes,
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        evaluation=lines(given.images, seed=1),
        folder=given.out,
        name="text-direction",
    )
    for row in result.report:
        print(f"{row['method']:10} {row['metric']:10} {float(row['value']):5.1f} %")
    print(f"model card: {result.card}")


if __name__ == "__main__":
    main()
