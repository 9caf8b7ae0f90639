#!/usr/bin/env bash
# Everything that wants a GPU, in two runs of some minutes each:
#
#   benchmarks/gpu.sh bench    synthesis and training against the reference, three networks: results/benchmarks-*.json
#   benchmarks/gpu.sh paper    the paper's full setting on the CIFAR-10 ResNet-20 of examples/, all test images;
#                              needs DFSHIELD_DATA, goes on where it was if it is stopped
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
bench)
    for model in resnet20 resnet56 wrn28_10; do
        python -m benchmarks.bench --device cuda --model "$model" --stages synthesis training --repeats 3 \
            --out "results/benchmarks-$model.json"
    done
    ;;
paper)
    : "${DFSHIELD_DATA:?name the folder that holds cifar10_resnet20.safetensors and cifar10_test.npz}"
    time snakemake harden --cores all --configfile benchmarks/gpu.yaml
    cat results/harden/resnet20/MODEL_CARD.md
    ;;
*)
    sed -n '2,6s|^# \{0,1\}||p' "$0"
    exit 2
    ;;
esac
