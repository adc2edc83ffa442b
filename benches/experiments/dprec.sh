#!/usr/bin/env bash
# DPRec and its peers on real data: popularity, EASE, LightGCN, DiffMM, DPRec, its ablations A1 to A4
# and the int8 student; three seeds of DPRec and the student, one of the rest.
#
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/dprec.sh [ml100k|tiktok|baby|steam|ml1m]...
#
# Every run is a folder under TERCET_RUNS (default: runs/dprec). Finished runs are skipped and
# interrupted ones are continued. With no argument all parts run, the small data sets first. The
# tables are printed at the end by tables.py.
set -euo pipefail
runs_name=dprec
data=${TERCET_DATA_DIR:?set TERCET_DATA_DIR to the folder that holds the data sets}
. "$(dirname "$0")/common.sh"

# peers NAME SET: what DPRec is compared with. Lists of options come from the arrays below.
ease=() graph=() diffmm=() dprec=() common=() student=()
peers() {
  local n=$1 d=$data/$2
  run "$n-popularity" train --model popularity --data "$d" "${common[@]}"
  run "$n-ease" train --model ease --data "$d" "${common[@]}" --set train.metric=ndcg@20 "${ease[@]}"
  run "$n-lightgcn-1" train --model lightgcn --data "$d" "${common[@]}" --seed 1 "${graph[@]}"
  [ ${#diffmm[@]} -eq 0 ] || run "$n-diffmm-1" train --model diffmm --data "$d" "${common[@]}" --seed 1 "${diffmm[@]}"
}

# model NAME SET: DPRec, its student, and the ablations.
model() {
  local n=$1 d=$data/$2
  for s in 1 2 3; do
    run "$n-dprec-$s" train --model dprec --data "$d" "${common[@]}" --seed $s "${dprec[@]}"
    slices "$n-dprec-$s" "$2"
    run "$n-student-$s" distill --teacher "$runs/$n-dprec-$s" --data "$d" --seed $s "${student[@]}"
    pack "$n-student-$s" "$2"
  done
  run "$n-dprec-memory-1" train --model dprec --data "$d" "${common[@]}" --seed 1 "${dprec[@]}" --set perspective=memory
  run "$n-dprec-expansion-1" train --model dprec --data "$d" "${common[@]}" --seed 1 "${dprec[@]}" --set perspective=expansion
  [ ${#diffmm[@]} -gt 0 ] || return 0 # what follows changes content only
  run "$n-dprec-poor-1" train --model dprec --data "$d" "${common[@]}" --seed 1 "${dprec[@]}" --set feature_bits=8
  run "$n-dprec-product-1" train --model dprec --data "$d" "${common[@]}" --seed 1 "${dprec[@]}" --set align=product
}

ml100k() {
  ease=(--set "lambda=[50.0,100.0,200.0,500.0]") diffmm=(--set standardize=true)
  peers ml100k ml100k-mm
  model ml100k ml100k-mm
}

tiktok() {
  ease=(--set "lambda=[50.0,100.0,200.0,400.0]") diffmm=(--mode honest)
  student=(--epochs 20 --set teacher_weight=0.5 --set score_weight=1.0)
  peers tiktok tiktok-diffmm
  model tiktok tiktok-diffmm
}

baby() {
  ease=(--set "lambda=[100.0,200.0,400.0]") student=(--epochs 20)
  peers baby baby-diffmm
  model baby baby-diffmm
}

steam() {
  ease=(--set "lambda=[100.0,200.0,500.0]") diffmm=(--set standardize=true) common=(--target-behavior play)
  student=(--epochs 20)
  peers steam steam-mb
  model steam steam-mb
}

ml1m() {
  ease=(--set "lambda=[500.0,1000.0]") graph=(--set batch=8192 --set lr=5e-3 --epochs 40 --set train.eval_every=2)
  diffmm=(--set standardize=true --set batch=8192 --set lr=5e-3 --epochs 20)
  dprec=(--set batch=16384 --set lr=5e-3 --epochs 40 --set train.eval_every=2) student=(--epochs 9)
  peers ml1m ml1m-mm
  model ml1m ml1m-mm
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(ml100k tiktok baby steam ml1m)
for part in "${parts[@]}"; do
  ease=() graph=() diffmm=() dprec=() common=() student=()
  "$part"
done
python3 "$here/tables.py" "$runs"
