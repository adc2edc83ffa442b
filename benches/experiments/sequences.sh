#!/usr/bin/env bash
# Sequences: ODMT, its ablations, SASRec and the distilled student on data whose events have an order.
#
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/sequences.sh [industrial|tokens|ml100k|beauty|yelp|ml1m]...
#
# `tokens` wants TERCET_ENCODER, the folder of a MiniLM as models/scripts/fetch_encoders.py writes it, and
# is left out without. Options: TERCET_RUNS, TERCET_THREADS, TERCET_BIN and TERCET_SEEDS (default "1 2 3"), as in
# common.sh. Finished runs are skipped and interrupted ones are continued. With no argument all parts
# run, the most telling first. ml1m-mm has no order: its rows are shuffled once, and what models of
# sequences learn there is what goes together.
set -euo pipefail
runs_name=sequences
data=${TERCET_DATA_DIR:?set TERCET_DATA_DIR to the folder that holds the data sets}
. "$(dirname "$0")/common.sh"
seeds=${TERCET_SEEDS:-1 2 3}

# What every model here is selected by.
select=(--set train.metric=ndcg@10)

# baselines PART FOLDER options…: models without features, one seed; the options are BPR's.
baselines() {
  local part=$1 folder=$2; shift 2
  run "$part-popularity" train --model popularity --data "$folder" "${select[@]}"
  run "$part-bpr-1" train --model bpr --data "$folder" --seed 1 "${select[@]}" --epochs 100 --set train.eval_every=2 --set train.patience=8 "$@"
}

# branch NAME FOLDER BRANCH: what one branch of an ODMT run ranks by itself.
branch() {
  [ -f "$runs/$1.$3.json" ] || report "$runs/$1.$3.json" "$tercet" evaluate --run "$runs/$1" --data "$2" --set "score_by=$3" --json
}

# ablations PART FOLDER options…: ODMT less one of its parts, one seed.
ablations() {
  local part=$1 folder=$2; shift 2
  run "$part-odmt-without-distillation-1" train --model odmt --data "$folder" --seed 1 "${select[@]}" "$@" --set alpha=0
  run "$part-odmt-without-imt-1" train --model odmt --data "$folder" --seed 1 "${select[@]}" "$@" --set imt=false
}

industrial() {
  local d=$data/amazon-industrial-text o=(--epochs 30 --set train.patience=6) s
  for s in $seeds; do
    run industrial-odmt-$s train --model odmt --data "$d" --seed $s "${select[@]}" "${o[@]}"
    run industrial-sasrec-$s train --model sasrec --data "$d" --seed $s "${select[@]}" --epochs 60 --set windows=all
  done
  ablations industrial "$d" "${o[@]}"
  branch industrial-odmt-1 "$d" id
  branch industrial-odmt-1 "$d" text_minilm
  for s in $seeds; do
    slices industrial-odmt-$s "$d"
    slices industrial-sasrec-$s "$d"
    # The published queries do not exclude the history, so neither does the student's training.
    run industrial-student-$s distill --teacher "$runs/industrial-odmt-$s" --data "$d" --seed $s "${select[@]}" --epochs 30 --set mask_history=false
    pack industrial-student-$s "$d"
  done
  # With less decay or larger initial vectors it stays far below popularity: users have five events.
  baselines industrial "$d" --set batch=256 --set reg=0.3 --set init_std=0.01
}

# The first 20 tokens of titles instead of one pooled vector of the whole text.
tokens() {
  local d=$runs/industrial-tokens o=(--modalities text_tokens --epochs 30 --set train.patience=6) s
  [ -n "${TERCET_ENCODER:-}" ] || return 0
  copied "$data/amazon-industrial-text" "$d"
  [ -f "$d/features/text_tokens.safetensors" ] || "$tercet" data embed --data "$d" --modality text --model "$TERCET_ENCODER" --tokens 20 --columns title --out text_tokens >&2
  for s in $seeds; do
    run industrial-odmt-tokens-$s train --model odmt --data "$d" --seed $s "${select[@]}" "${o[@]}"
  done
  run industrial-odmt-tokens-without-imt-1 train --model odmt --data "$d" --seed 1 "${select[@]}" "${o[@]}" --set imt=false
}

ml100k() {
  # Batches of 16 windows: of 128 there would be 19 steps in an epoch. Full distillation takes the
  # branches' ranking apart within a few epochs here, a constant tenth of it does not.
  local d=$data/ml100k-mm o=(--epochs 30 --set train.patience=7 --set window=50 --set batch=16 --set dropout=0.2 --set tau=0.5 --set alpha=0.1) s m
  for s in $seeds; do
    run ml100k-sasrec-$s train --model sasrec --data "$d" --seed $s "${select[@]}" --epochs 80 --set windows=all
    run ml100k-odmt-$s train --model odmt --data "$d" --seed $s "${select[@]}" "${o[@]}"
  done
  ablations ml100k "$d" "${o[@]}"
  for m in text_minilm image_efflite0; do
    run ml100k-odmt-$m-alone-1 train --model odmt --data "$d" --modalities $m --seed 1 "${select[@]}" "${o[@]}"
  done
  for s in $seeds; do
    run ml100k-student-$s distill --teacher "$runs/ml100k-odmt-$s" --data "$d" --seed $s "${select[@]}" --epochs 40
    pack ml100k-student-$s "$d"
  done
  baselines ml100k "$d"
}

# No features: SASRec and its student only, which is best after its first epoch.
beauty() {
  local d=$data/amazon-beauty-seq s
  for s in $seeds; do
    run beauty-sasrec-$s train --model sasrec --data "$d" --seed $s "${select[@]}" --epochs 40 --set train.patience=5
    run beauty-student-$s distill --teacher "$runs/beauty-sasrec-$s" --data "$d" --seed $s "${select[@]}" --epochs 10 --set train.patience=2
    pack beauty-student-$s "$d"
  done
  baselines beauty "$d"
}

yelp() {
  local d=$data/yelp-seq o=(--epochs 20 --set train.patience=4) s
  for s in $seeds; do
    run yelp-odmt-$s train --model odmt --data "$d" --seed $s "${select[@]}" "${o[@]}"
    run yelp-sasrec-$s train --model sasrec --data "$d" --seed $s "${select[@]}" --epochs 20 --set train.patience=4 --set negatives=2048
  done
  ablations yelp "$d" "${o[@]}"
  baselines yelp "$d"
  for s in $seeds; do
    run yelp-student-$s distill --teacher "$runs/yelp-odmt-$s" --data "$d" --seed $s "${select[@]}" --epochs 8
    pack yelp-student-$s "$d"
  done
}

# A copy whose rows are shuffled, in that order: one that means nothing should not look like one. ODMT's epochs are
# few, it was still rising. One seed of both with a new order every epoch, which is the default here.
ml1m() {
  local d=$runs/ml1m-shuffled w=(--set windows=last --set window=50) s m
  local fixed=(--epochs 10 --set shuffle_events=false) o=("${w[@]}" --set batch=32 --set dropout=0.2 --set tau=0.5 --set alpha=0.1)
  copied "$data/ml1m-mm" "$d" python3 "$here/shuffle_rows.py" interactions.csv.gz
  for s in $seeds; do
    run ml1m-odmt-$s train --model odmt --data "$d" --seed $s "${select[@]}" "${fixed[@]}" "${o[@]}"
    run ml1m-sasrec-$s train --model sasrec --data "$d" --seed $s "${select[@]}" "${w[@]}" --epochs 30 --set train.patience=4 --set shuffle_events=false
    run ml1m-student-$s distill --teacher "$runs/ml1m-odmt-$s" --data "$d" --seed $s "${select[@]}" --epochs 20
    pack ml1m-student-$s "$d"
  done
  run ml1m-odmt-shuffled-1 train --model odmt --data "$d" --seed 1 "${select[@]}" "${o[@]}" --epochs 12
  run ml1m-sasrec-shuffled-1 train --model sasrec --data "$d" --seed 1 "${select[@]}" "${w[@]}" --epochs 60 --set train.patience=6
  ablations ml1m "$d" "${fixed[@]}" "${o[@]}"
  for m in text_minilm image_efflite0; do
    run ml1m-odmt-$m-alone-1 train --model odmt --data "$d" --modalities $m --seed 1 "${select[@]}" "${fixed[@]}" "${o[@]}"
  done
  baselines ml1m "$d"
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(industrial tokens ml100k beauty yelp ml1m)
for part in "${parts[@]}"; do "$part"; done
python3 "$here/tables.py" "$runs" hit@10 ndcg@10
