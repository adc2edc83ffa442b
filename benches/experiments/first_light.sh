#!/usr/bin/env bash
# First light: DiffMM, its baselines and the distilled student on real data.
#
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/first_light.sh [tiktok|ablations|ml100k|ml1m]...
#
# Every run is a folder under TERCET_RUNS (default: runs/first-light). Finished runs are skipped and
# interrupted ones are continued, so the script can be stopped and repeated at will. With no
# argument all parts run. The tables are printed at the end by tables.py.
set -euo pipefail
runs_name=first-light
data=${TERCET_DATA_DIR:?set TERCET_DATA_DIR to the folder that holds the data sets}
. "$(dirname "$0")/common.sh"

tiktok() {
  local d=$data/tiktok-diffmm
  run tiktok-popularity train --model popularity --data "$d"
  run tiktok-ease train --model ease --data "$d" --set "lambda=[50.0,100.0,200.0,400.0]" --set train.metric=ndcg@20
  slices tiktok-ease "$d"
  for s in 421 1 2; do
    run tiktok-lightgcn-$s train --model lightgcn --data "$d" --seed $s
    # One training gives both protocols: the epoch chosen on test (parity) and on validation.
    run tiktok-diffmm-$s train --model diffmm --data "$d" --seed $s --mode parity
    # Chosen on validation against teacher_weight=0.2 score_weight=10 (the default): sparse
    # histories want the teacher's lists.
    run tiktok-student-$s distill --teacher "$runs/tiktok-diffmm-$s" --data "$d" --seed $s --epochs 20 --set teacher_weight=0.5 --set score_weight=1.0
    pack tiktok-student-$s "$d"
  done
}

# One seed: where the distance to the published number comes from.
ablations() {
  local d=$data/tiktok-diffmm
  run tiktok-diffmm-nocl train --model diffmm --data "$d" --seed 421 --mode parity --set contrast=off
  run tiktok-diffmm-nomsi train --model diffmm --data "$d" --seed 421 --mode parity --set msi=false
  run tiktok-diffmm-nogen train --model diffmm --data "$d" --seed 421 --mode parity --set generated=off
  run tiktok-diffmm-random train --model diffmm --data "$d" --seed 421 --mode parity --set generated=random
  run tiktok-diffmm-popular train --model diffmm --data "$d" --seed 421 --mode parity --set generated=popular
}

ml100k() {
  local d=$data/ml100k-mm
  run ml100k-popularity train --model popularity --data "$d"
  run ml100k-ease train --model ease --data "$d" --set "lambda=[50.0,100.0,200.0,500.0]" --set train.metric=ndcg@20
  slices ml100k-ease "$d"
  for s in 1 2 3; do
    run ml100k-lightgcn-$s train --model lightgcn --data "$d" --seed $s
    run ml100k-sasrec-$s train --model sasrec --data "$d" --seed $s --set train.metric=ndcg@20
    run ml100k-diffmm-$s train --model diffmm --data "$d" --seed $s --set standardize=true
    run ml100k-student-$s distill --teacher "$runs/ml100k-diffmm-$s" --data "$d" --seed $s
    pack ml100k-student-$s "$d"
    run ml100k-blend-$s distill --teacher "$runs/ml100k-sasrec-$s" --teacher "$runs/ml100k-ease" --data "$d" --seed $s --epochs 40 --set dropout=0.0
    pack ml100k-blend-$s "$d"
  done
}

ml1m() {
  local d=$data/ml1m-mm
  run ml1m-popularity train --model popularity --data "$d"
  run ml1m-ease train --model ease --data "$d" --set "lambda=[500.0,1000.0]" --set train.metric=ndcg@20
  slices ml1m-ease "$d"
  # What the rows that the settings were chosen on are worth: the same penalty, fitted on them too.
  run ml1m-ease-refit train --model ease --data "$d" --set "lambda=[1000.0]" --set fit_on=train_valid
  run ml1m-student-refit distill --teacher "$runs/ml1m-ease-refit" --data "$d" --seed 1 --epochs 9 --set dim=128 --set teacher_weight=0.0 --set drop_steps=0.0 --set start_scale=0.6
  pack ml1m-student-refit "$d"
  run ml1m-lightgcn-1 train --model lightgcn --data "$d" --seed 1 --set batch=8192 --set lr=5e-3 --epochs 40 --set train.eval_every=2
  for s in 1 2 3; do
    run ml1m-diffmm-$s train --model diffmm --data "$d" --seed $s --set standardize=true --set batch=8192 --set lr=5e-3 --epochs 20
    run ml1m-student-$s distill --teacher "$runs/ml1m-ease" --data "$d" --seed $s --epochs 9 --set dim=128 --set teacher_weight=0.0 --set drop_steps=0.0 --set start_scale=0.6
    pack ml1m-student-$s "$d"
  done
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tiktok ablations ml100k ml1m)
for part in "${parts[@]}"; do "$part"; done
python3 "$here/tables.py" "$runs"
