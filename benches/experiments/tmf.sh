#!/usr/bin/env bash
# TMF and its peers: what each part is worth on the synthetic shop, and figures on real data.
#
#   benches/experiments/tmf.sh shop sparse answers        # ablations; the same with few events an item; answers
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/tmf.sh [ml100k|steam|retailrocket]...
#   LLM=encoders/smollm2 TERCET_DATA_DIR=… benches/experiments/tmf.sh ml100k-llm   # with a pretrained model
#
# Every run is a folder under TERCET_RUNS (default: runs/tmf), for each of TERCET_SEEDS (default "1 2 3").
# Finished runs are skipped and interrupted ones are continued. The tables are printed at the end by
# tables.py and tmf_tables.py, which reads the rankings of a fixed shelf from *.vector.json and its like.
set -euo pipefail
runs_name=tmf
. "$(dirname "$0")/common.sh"
data=${TERCET_DATA_DIR:-}
seeds=${TERCET_SEEDS:-1 2 3}
most=()

# shelf NAME DIR NEGATIVES [SCORING…]: ranking and hit@1 on a fixed shelf, by the model's only way to score
# (the file is called vector) or by each of TMF's that are named.
shelf() {
  local name=$1 folder=$2 negatives=$3 scoring; shift 3
  for scoring in "${@:-vector}"; do
    local out=$runs/$name.$scoring.json set=()
    [ -f "$out" ] && continue
    [ $# -eq 0 ] || set=(--set "scoring=$scoring")
    report "$out" "$tercet" evaluate --run "$runs/$name" --data "$folder" --protocol "sampled:$negatives" --k 1,5,10 \
      --lists "$runs/$name.$scoring.lists" "${set[@]}" "${most[@]}" --threads "$threads" --json
  done
}

# The shop of the specification's size: 600 users, 400 items, about 20 events each.
shop_set() {
  [ -d "$runs/shop-data" ] || "$tercet" data synth --out "$runs/shop-data" --users 600 --items 400 --seed 17 --json >/dev/null
}

# ablation SET NAME options…: one run a seed, the catalogue and a shelf of ten.
ablation() {
  local set=$1 name=$1-$2 s; shift 2
  for s in $seeds; do
    run "$name-$s" train --model tmf --data "$runs/$set-data" --seed "$s" --epochs 8 --set warmup_steps=60 \
      --set examples=80 --set "sequences=${sequences:-960}" --set sequence_batch=16 "$@"
    shelf "$name-$s" "$runs/$set-data" 9 vector
  done
}

shop() {
  local s d=$runs/shop-data
  shop_set
  run shop-popularity train --model popularity --data "$d"
  shelf shop-popularity "$d" 9
  ablation shop full
  for s in $seeds; do
    run shop-sasrec-$s train --model sasrec --data "$d" --seed $s
    shelf shop-sasrec-$s "$d" 9
    run shop-student-$s distill --teacher "$runs/shop-full-$s" --data "$d" --seed $s --epochs 24 --set lr=2e-3 \
      --set lesson_epochs=2 --set cuts=1 --set candidate_weight=0.5
    shelf shop-student-$s "$d" 9
    pack shop-student-$s "$d"
  done
  ablation shop no-image --modalities text
  ablation shop no-text --modalities image
  ablation shop no-graph --set graph=false
  ablation shop no-cross --set cross=off
  ablation shop no-self --set scope=off
  ablation shop mean-pool --set cross=off --set scope=off
  ablation shop no-behaviours --set behavior_tokens=false
  ablation shop no-warm-up --set warmup_steps=0
  ablation shop no-curriculum --set curriculum=tokens
  ablation shop words --set curriculum=words
  ablation shop sequence-scope --set scope=sequence
  ablation shop three-tokens --set soft_tokens=each
}

# Ten times the items for twice the users: five events an item instead of thirty, from which the graph cannot
# read what images and titles say. A graph that has not met some users lacks the fewer events the more folds there are.
sparse() {
  local sequences=1920
  [ -d "$runs/sparse-data" ] || "$tercet" data synth --out "$runs/sparse-data" --users 1200 --items 4800 --seed 17 --json >/dev/null
  run sparse-popularity train --model popularity --data "$runs/sparse-data"
  ablation sparse full --set graph_folds=8
  ablation sparse no-image --modalities text --set graph_folds=8
  ablation sparse no-text --modalities image --set graph_folds=8
  ablation sparse no-graph --set graph=false
  ablation sparse no-behaviours --set behavior_tokens=false --set graph_folds=8
}

# Written answers: sixty times as many prompts.
answers() {
  local s d=$runs/shop-data
  shop_set
  for s in $seeds; do
    run "shop-answers-$s" train --model tmf --data "$d" --seed "$s" --epochs 8 --set warmup_steps=60 \
      --set examples=4800 --set label_share=0.5 --set sequences=480 --set sequence_batch=16
    shelf "shop-answers-$s" "$d" 9 vector likelihood label free trie
  done
}

# With a pretrained language model: what two hours on two cores allow. Shelves of 300 users.
ml100k-llm() {
  need
  local d=$data/ml100k-mm llm=${LLM:?set LLM to the folder of a language model}
  run ml100k-llm-1 train --model tmf --data "$d" --seed 1 --epochs 4 --set "llm=$llm" --set lr=1e-3 --set warmup_steps=4 \
    --set candidates=20 --set examples=96 --set label_share=0.5 --set sequences=160 --set sequence_batch=8 \
    --set tokens_at_once=512
  most=(--max-users 300)
  shelf ml100k-llm-1 "$d" 19 vector label likelihood
}

# peers NAME FOLDER: what TMF is compared with, each on the fixed shelf too. Options come from the arrays below.
peers() {
  local n=$1 d=$2 s peer
  run "$n-popularity" train --model popularity --data "$d" "${common[@]}"
  [ ${#ease[@]} -eq 0 ] || run "$n-ease" train --model ease --data "$d" "${common[@]}" "${ease[@]}"
  run "$n-graph-1" train --model behavior-graph --data "$d" "${common[@]}" --seed 1 --set train.eval_every=5 \
    --set train.patience=3
  run "$n-sasrec-1" train --model sasrec --data "$d" "${common[@]}" --seed 1 "${sasrec[@]}"
  for s in $seeds; do
    run "$n-sasrec-behaviors-$s" train --model sasrec --data "$d" "${common[@]}" --seed "$s" "${sasrec[@]}" \
      --set behaviors=true
    shelf "$n-sasrec-behaviors-$s" "$d" 19
  done
  for peer in popularity ${ease:+ease} graph-1 sasrec-1; do shelf "$n-$peer" "$d" 19; done
}

# model NAME FOLDER options…: TMF and its student. Without folds of users (graph_folds=1): on validation rows they are
# worth nothing on RetailRocket, and cost a little on MovieLens-100K.
model() {
  local n=$1 d=$2 s; shift 2
  for s in $seeds; do
    run "$n-tmf-$s" train --model tmf --data "$d" --seed "$s" "${common[@]}" "$@"
    shelf "$n-tmf-$s" "$d" 19
    run "$n-student-$s" distill --teacher "$runs/$n-tmf-$s" --data "$d" --seed "$s" \
      --epochs 30 --set lesson_epochs=2 --set cuts=1 --set candidate_weight=0.5
    shelf "$n-student-$s" "$d" 19
    pack "$n-student-$s" "$d"
  done
}

# words NAME FOLDER: a language model that reads titles only, and items known by their text alone. Fewer epochs: they
# cost more than twice as much.
words() {
  run "$1-words-1" train --model tmf --data "$2" --seed 1 "${common[@]}" --epochs 4 --set curriculum=words \
    --modalities text_minilm --set graph=false
  shelf "$1-words-1" "$2" 19
}

need() { : "${data:?set TERCET_DATA_DIR to the folder that holds the data sets}"; }

ml100k() {
  need
  local d=$data/ml100k-mm
  model ml100k "$d" --epochs 16 --set candidates=20 --set graph_folds=1
  peers ml100k "$d"
  words ml100k "$d"
}

steam() {
  need
  common=(--target-behavior play) sasrec=(--epochs 40)
  model steam "$data/steam-mb" --set candidates=20 --set graph_folds=1
  peers steam "$data/steam-mb"
  words steam "$data/steam-mb"
}

# No titles to write, and 30,113 items, too many for EASE.
retailrocket() {
  need
  common=(--target-behavior buy) sasrec=(--set negatives=1000) ease=()
  model retailrocket "$data/retailrocket-mb" --set examples=8 --set graph_folds=1
  peers retailrocket "$data/retailrocket-mb"
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(shop sparse answers ml100k steam retailrocket)
for part in "${parts[@]}"; do
  common=() sasrec=() ease=(--set "lambda=[50.0,100.0,200.0,500.0]")
  "$part"
done
python3 "$here/tables.py" "$runs"
python3 "$here/tmf_tables.py" "$runs"
