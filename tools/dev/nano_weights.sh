#!/usr/bin/env bash
# Trains the networks under checkpoints/: supernet, linear stage, two searches and retrainings, a detector, a segmentor.
#
#   bash tools/dev/nano_weights.sh [ROOT]     default: work_dirs/nano; about 40 minutes on two quiet cores
#
# A later call skips finished steps and continues the interrupted one. Then: python tools/dev/publish_zoo.py ROOT
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:-work_dirs/nano}
python=${PINAS_PYTHON_BIN:-$(bash tools/setup_env.sh --where)/bin/python}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

last() { # relative: the dumped configs must not name this machine
    local path
    path=$(cat "$root/$1/last_checkpoint")
    printf '%s\n' "${path#"$PWD/"}"
}
arch() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["arch"])' "$root/$1/best.json"; }
train() { # CONFIG NAME [KEY=VALUE ...]; a finished training has nothing left to do
    local config=configs/nano/$1.py name=$2
    shift 2
    "$python" tools/train.py "$config" --work-dir "$root/$name" --seed 0 --resume ${1:+--cfg-options "$@"}
}
find_and_retrain() { # SEARCH_CONFIG SUFFIX
    "$python" tools/search.py "configs/nano/$1.py" --checkpoint "$(last linear)" --work-dir "$root/search$2"
    "$python" tools/derive.py "configs/nano/$1.py" --checkpoint "$(last linear)" \
        --arch "$root/search$2/best.json" --out "$root/backbone$2.safetensors"
    train pinas-nano_b128-coslr-1.5k_fmnist "retrain$2" "model.model.arch=$(arch "search$2")"
}
transfer() { # CONFIG NAME
    train "$1" "$2" "model.backbone.arch=$(arch search)" "model.backbone.init_cfg.checkpoint=$(last retrain)" \
        model.backbone.init_cfg.prefix=net.
}

"$python" tools/prepare_data.py scenes --root "$root/scenes" --size 128 --train 1200 --val 200 --seed 0 \
    --formats coco ade20k
train pinas-nano-supernet_b128-coslr-1k_fmnist pretrain
train pinas-nano-linear_b256-300_fmnist linear "model.supernet=$(last pretrain)"
find_and_retrain pinas-nano-tree_128_fmnist ''
"$python" -m pinas_zoo.mm.quickstart.results publish "$root" # retrained.safetensors, for the transfer study
find_and_retrain pinas-nano-tree_128-13m8_fmnist '-b'
transfer mask-rcnn_pinas-nano_fpn_b8-lin-480_scenes detection
transfer deeplabv3_pinas-nano-d8_b8-poly-1.6k_scenes segmentation
