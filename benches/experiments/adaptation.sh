#!/usr/bin/env bash
# Adaptation: what learning from the user on the device adds, replayed on real data.
#
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/adaptation.sh [ml100k|temporal|retailrocket]...
#
# Options: TERCET_RUNS, TERCET_THREADS, TERCET_BIN and TERCET_SEEDS (default "1 2 3"), as in
# common.sh. Finished runs are skipped and interrupted ones are continued. With no argument all parts
# run. Weights and half-life were chosen on validation rows; test rows are for reporting.
set -euo pipefail
runs_name=adaptation
data=${TERCET_DATA_DIR:?set TERCET_DATA_DIR to the folder that holds the data sets}
. "$(dirname "$0")/common.sh"
seeds=${TERCET_SEEDS:-1 2 3}

# bundle NAME FOLDER: exports a student.
bundle() {
  [ -d "$runs/$1.tercet" ] || "$tercet" export --student "$runs/$1" --data "$2" --out "$runs/$1.tercet" --json >"$runs/$1.export.json"
}

# replays NAME FOLDER AS: the bundle's replay of both parts, and of test rows without skips.
replays() {
  local s
  for s in valid test; do
    [ -f "$runs/$1.$3.$s.json" ] || report "$runs/$1.$3.$s.json" "$tercet" evaluate --bundle "$runs/$1.tercet" --data "$2" --replay --split $s --json
  done
  [ -f "$runs/$1.$3.quiet.json" ] || report "$runs/$1.$3.quiet.json" "$tercet" evaluate --bundle "$runs/$1.tercet" --data "$2" --replay --shown 0 --json
}

# split_by_time SET: the set split by time within each user.
split_by_time() {
  [ -d "$runs/data/$1" ] || python3 "$here/temporal_split.py" "$data/$1" "$runs/data/$1"
}

# The data set's own split: one validation and one test event a user.
ml100k() {
  local d=$data/ml100k-mm s
  run ml100k-ease train --model ease --data "$d" --set "lambda=[50.0,100.0,200.0,500.0]" --set train.metric=ndcg@20
  for s in $seeds; do
    run ml100k-sasrec-$s train --model sasrec --data "$d" --seed $s --set train.metric=ndcg@20
    run ml100k-blend-$s distill --teacher "$runs/ml100k-sasrec-$s" --teacher "$runs/ml100k-ease" --data "$d" --seed $s --epochs 40 --set dropout=0.0
    bundle ml100k-blend-$s "$d"
    replays ml100k-blend-$s "$d" own
  done
}

# A tenth of each user's items in each part.
temporal() {
  split_by_time ml100k-mm
  local d=$runs/data/ml100k-mm s
  run temporal-ease train --model ease --data "$d" --set "lambda=[50.0,100.0,200.0,500.0]" --set train.metric=ndcg@20
  for s in $seeds; do
    run temporal-student-$s distill --teacher "$runs/temporal-ease" --data "$d" --seed $s --epochs 25 --set dropout=0.0
    bundle temporal-student-$s "$d"
    replays temporal-student-$s "$d" temporal
  done
}

# Trained on the split by time only: its training rows hold no test purchase of the set's own split.
retailrocket() {
  split_by_time retailrocket-mb
  local d=$runs/data/retailrocket-mb s
  run retailrocket-lightgcn train --model lightgcn --data "$d" --epochs 15 --set train.metric=ndcg@20
  for s in $seeds; do
    run retailrocket-student-$s distill --teacher "$runs/retailrocket-lightgcn" --data "$d" --seed $s --epochs 4
    bundle retailrocket-student-$s "$d"
    replays retailrocket-student-$s "$d" temporal
    replays retailrocket-student-$s "$data/retailrocket-mb" own
  done
}

[ $# -gt 0 ] || set -- ml100k temporal retailrocket
for part in "$@"; do "$part"; done
