#!/usr/bin/env bash
# DPRec and its peers on real data: popularity, EASE, LightGCN, DiffMM, DPRec, its ablations A1 to A4
# and the int8 student; three seeds of DPRec and the student, one of the rest.
#
#   TERCET_DATA_DIR=/path/to/datasets TERCET_LLM=/path/to/smollm2 benches/experiments/dprec.sh [ml100k|tiktok|baby|steam|ml1m|growth]...
#
# Every run is a folder under TERCET_RUNS (default: runs/dprec). Finished runs are skipped and
# interrupted ones are continued. With no argument all parts run, the small data sets first. The
# tables are printed at the end by tables.py.
#
# TERCET_LLM is the folder of a language model as models/scripts/fetch_encoders.py writes it. What it makes of
# titles and words is DPRec's text where there is text, and A1 has MiniLM's vectors instead; without
# TERCET_LLM, DPRec itself has those.
set -euo pipefail
runs_name=dprec
data=${TERCET_DATA_DIR:?set TERCET_DATA_DIR to the folder that holds the data sets}
. "$(dirname "$0")/common.sh"
seeds=${TERCET_SEEDS:-1 2 3}

# texts NAME SET PROMPT: a copy of the set with a language model's features of its texts, in `folder`.
texts() {
  folder=$data/$2
  [ -n "${TERCET_LLM:-}" ] || return 0
  folder=$runs/$1-data
  copied "$data/$2" "$folder"
  [ -f "$folder/features/text_llm.safetensors" ] || "$tercet" data embed --data "$folder" --modality text \
    --model "$TERCET_LLM" --prompt "$3" --max-tokens 160 --batch 8 --out text_llm >&2
  large=text_llm
}

# peers NAME: what DPRec is compared with. Lists of options come from the arrays below.
peers() {
  local n=$1
  run "$n-popularity" train --model popularity --data "$folder" "${common[@]}"
  run "$n-ease" train --model ease --data "$folder" "${common[@]}" --set train.metric=ndcg@20 "${ease[@]}"
  run "$n-lightgcn-1" train --model lightgcn --data "$folder" "${common[@]}" --seed 1 "${graph[@]}"
  [ ${#diffmm[@]} -eq 0 ] || run "$n-diffmm-1" train --model diffmm --data "$folder" "${common[@]}" "${small[@]}" --seed 1 "${diffmm[@]}"
}

# model NAME: DPRec, its student, and the ablations.
model() {
  local n=$1 s
  local train=(train --model dprec --data "$folder" "${common[@]}" "${dprec[@]}")
  # Its modalities and its student's: the language model's text instead of the small encoder's.
  local full=("${small[@]/text_minilm/$large}")
  for s in $seeds; do
    run "$n-dprec-$s" "${train[@]}" "${full[@]}" --seed $s
    slices "$n-dprec-$s" "$folder"
    run "$n-student-$s" distill --teacher "$runs/$n-dprec-$s" --data "$folder" "${full[@]}" --seed $s "${student[@]}"
    pack "$n-student-$s" "$folder"
  done
  run "$n-dprec-memory-1" "${train[@]}" "${full[@]}" --seed 1 --set perspective=memory
  run "$n-dprec-expansion-1" "${train[@]}" "${full[@]}" --seed 1 --set perspective=expansion
  [ ${#small[@]} -gt 0 ] || return 0 # what follows changes content only
  [ "$large" = text_minilm ] || run "$n-dprec-minilm-1" "${train[@]}" "${small[@]}" --seed 1
  run "$n-dprec-product-1" "${train[@]}" "${full[@]}" --seed 1 --set align=product
}

films="Film: {title}. Genre: {ml_genres}. Director: {director}. Cast: {actors}. Plot: {plot:60}. In one phrase, this film is about"
games="Game: {title}. Genre: {genres}. Tags: {tags}. Developer: {developer}. In one phrase, this game is about"

ml100k() {
  ease=(--set "lambda=[50.0,100.0,200.0,500.0]") diffmm=(--set standardize=true)
  small=(--modalities text_minilm,image_efflite0)
  dprec=(--set lr=2e-3 --epochs 60 --set train.eval_every=2 --set train.patience=4)
  texts ml100k ml100k-mm "$films"
  peers ml100k
  model ml100k
}

tiktok() {
  ease=(--set "lambda=[50.0,100.0,200.0,400.0]") diffmm=(--mode honest)
  small=(--modalities image,audio)
  student=(--epochs 20 --set teacher_weight=0.5 --set score_weight=1.0)
  folder=$data/tiktok-diffmm
  peers tiktok
  model tiktok
}

baby() {
  ease=(--set "lambda=[100.0,200.0,400.0]") student=(--epochs 20)
  folder=$data/baby-diffmm
  peers baby
  model baby
}

steam() {
  ease=(--set "lambda=[100.0,200.0,500.0]") diffmm=(--set standardize=true) common=(--target-behavior play)
  small=(--modalities text_minilm) student=(--epochs 20)
  texts steam steam-mb "$games"
  peers steam
  model steam
}

ml1m() {
  ease=(--set "lambda=[500.0,1000.0]") graph=(--set batch=8192 --set lr=5e-3 --epochs 40 --set train.eval_every=2)
  diffmm=(--set standardize=true --set batch=8192 --set lr=5e-3 --epochs 20)
  small=(--modalities text_minilm,image_efflite0)
  dprec=(--set batch=16384 --set lr=5e-3 --epochs 40 --set train.eval_every=2) student=(--epochs 9)
  texts ml1m ml1m-mm "$films"
  peers ml1m
  model ml1m
}

# What an epoch of eight steps costs, from ten thousand training pairs to three hundred thousand.
growth() {
  local users d
  for users in 800 2400 8000 24000; do
    d=$runs/growth-$users-data
    [ -d "$d" ] || "$tercet" data synth --kind perspectives --users $users --items $((users * 5 / 8)) --seed 17 --out "$d" --json >"$d.json"
    run growth-$users-users train --model dprec --data "$d" --seed 1 --epochs 2 --set train.eval_every=2 --set batch=$((users * 3 / 2))
  done
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(ml100k tiktok baby growth steam ml1m)
for part in "${parts[@]}"; do
  ease=() graph=() diffmm=() dprec=() common=() student=() small=() large=text_minilm
  "$part"
done
python3 "$here/tables.py" "$runs"
