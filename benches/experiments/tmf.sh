#!/usr/bin/env bash
# TMF and its peers: what each part is worth on the synthetic shop, and figures on real data.
#
#   benches/experiments/tmf.sh shop                       # ablations; SEEDS="1 2 3"
#   TERCET_DATA_DIR=/path/to/datasets benches/experiments/tmf.sh [ml100k|steam|retailrocket]...
#   LLM=encoders/smollm2-135m … benches/experiments/tmf.sh shop-llm   # with a pretrained model
#
# Every run is a folder under TERCET_RUNS (default: runs/tmf). Finished runs are skipped and
# interrupted ones are continued. The tables are printed at the end by tables.py and tmf_tables.py,
# which reads the answers on a fixed shelf from *.label.json and its like.
set -euo pipefail
runs_name=tmf
. "$(dirname "$0")/common.sh"
data=${TERCET_DATA_DIR:-}

# answers NAME DIR SCORING NEGATIVES: hit@1, valid@1 and ranking on a fixed shelf.
answers() {
  local out=$runs/$1.$3.json
  [ -f "$out" ] && return 0
  report "$out" "$tercet" evaluate --run "$runs/$1" --data "$2" --protocol "sampled:$4" --k 1,5,10 \
    --set "scoring=$3" --threads "$threads" --json
}

# The shop of the specification's size: 600 users, 400 items, about 20 events each.
shop_set() {
  [ -d "$runs/shop-data" ] || "$tercet" data synth --out "$runs/shop-data" --users 600 --items 400 --seed 17 --json >/dev/null
}

# ablation NAME options…: one run a seed, the catalogue and a shelf of ten.
ablation() {
  local name=$1; shift
  for s in ${SEEDS:-1 2 3}; do
    run "shop-$name-$s" train --model tmf --data "$runs/shop-data" --seed "$s" "$@"
    for scoring in vector likelihood label; do
      answers "shop-$name-$s" "$runs/shop-data" $scoring 9
    done
  done
}

shop() {
  shop_set
  run shop-popularity train --model popularity --data "$runs/shop-data"
  answers shop-popularity "$runs/shop-data" vector 9 2>/dev/null || "$tercet" evaluate --run "$runs/shop-popularity" \
    --data "$runs/shop-data" --protocol sampled:9 --k 1,5,10 --json >"$runs/shop-popularity.vector.json"
  run shop-sasrec train --model sasrec --data "$runs/shop-data" --seed 1
  "$tercet" evaluate --run "$runs/shop-sasrec" --data "$runs/shop-data" --protocol sampled:9 --k 1,5,10 --json >"$runs/shop-sasrec.vector.json"
  ablation full
  ablation no-image --modalities text
  ablation no-text --modalities image
  ablation no-graph --set graph=false
  ablation no-cross --set cross=off
  ablation no-self --set scope=off
  ablation mean-pool --set cross=off --set scope=off
  ablation sequence-scope --set scope=sequence
  ablation three-tokens --set soft_tokens=each
  ablation no-warm-up --set warmup_steps=0
  ablation no-curriculum --set curriculum=tokens
  ablation no-behaviours --set behavior_tokens=false
  ablation words --set curriculum=words
  for scoring in free trie; do answers shop-full-1 "$runs/shop-data" $scoring 9; done
}

shop-llm() {
  shop_set
  local llm=${LLM:?set LLM to the folder of a language model}
  local options=(--set "llm=$llm" --set lr=2e-4 --set warmup_steps=${WARM:-4} --set examples=${EXAMPLES:-32}
    --set sequences=${SEQUENCES:-64} --set sequence_batch=8 --set negatives=200 --epochs ${EPOCHS:-3})
  run shop-llm train --model tmf --data "$runs/shop-data" --seed 1 "${options[@]}"
  answers shop-llm "$runs/shop-data" label 9
}

# model NAME SET options…: popularity, the text and graph reading of TMF, its student.
model() {
  local n=$1 d=$data/$2; shift 2
  run "$n-popularity" train --model popularity --data "$d" "${common[@]}"
  for s in ${SEEDS:-1}; do
    run "$n-tmf-$s" train --model tmf --data "$d" --seed "$s" "${common[@]}" "$@"
    answers "$n-tmf-$s" "$d" label 9
    answers "$n-tmf-$s" "$d" likelihood 9
    run "$n-student-$s" distill --teacher "$runs/$n-tmf-$s" --data "$d" --seed "$s" \
      --epochs 30 --set lesson_epochs=2 --set cuts=1 --set candidate_weight=0.5
    pack "$n-student-$s" "$d"
  done
}

common=()
need() { : "${data:?set TERCET_DATA_DIR to the folder that holds the data sets}"; }
ml100k() { need; common=(); model ml100k ml100k-mm --epochs 16; }
steam() { need; common=(--target-behavior play); model steam steam-mb; }
retailrocket() { need; common=(--target-behavior buy); model retailrocket retailrocket-mb; }

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(shop ml100k steam retailrocket)
for part in "${parts[@]}"; do "$part"; done
python3 "$here/tables.py" "$runs"
python3 "$here/tmf_tables.py" "$runs"
