#!/usr/bin/env bash
# DPRec on a synthetic set with known structure: the ablations A0 to A11 and LightGCN, three seeds
# each, and the relations that have to hold between them.
#
#   benches/experiments/dprec_synthetic.sh [A0 A4 …]
#
# Every run is a folder under TERCET_RUNS (default: runs/dprec-synthetic). Finished runs are skipped
# and interrupted ones are continued. The table goes to standard output and, with no argument, to
# benches/results/dprec-synthetic.md.
set -euo pipefail
runs_name=dprec-synthetic
. "$(dirname "$0")/common.sh"
seeds=${TERCET_SEEDS:-1 2 3}
data=$runs/data
[ -d "$data" ] || "$tercet" data synth --kind perspectives --seed 17 --out "$data" >&2

# The same for every ablation; each trains until its own validation rows stop improving.
common=(--epochs 80 --set train.eval_every=4 --set train.patience=3 --set lr=5e-3 --set probe_attribute=group)
declare -A setting=(
  [A0]=dim=64 [A1]=feature_bits=8 [A2]=perspective=memory [A3]=perspective=expansion [A4]=align=product
  [A5]=level_item=false [A6]=level_concept=false [A7]=level_interest=false [A8]=align=pairwise
  [A9]=perspective=average [A10]=whiten=false [A11]=align=none
)

# one NAME SEED
one() {
  if [ "$1" = lightgcn ]; then
    run "$1-$2" train --model lightgcn --data "$data" --seed "$2" --epochs 120 --set train.eval_every=4 --set lr=5e-3
  else
    run "$1-$2" train --model dprec --data "$data" --seed "$2" "${common[@]}" --set "${setting[$1]}"
  fi
  slices "$1-$2" "$data"
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(A0 A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 lightgcn)
for s in $seeds; do
  for part in "${parts[@]}"; do one "$part" "$s"; done
done
if [ $# -eq 0 ]; then
  python3 "$here/dprec_synthetic.py" "$runs" | tee "$root/benches/results/dprec-synthetic.md"
else
  python3 "$here/dprec_synthetic.py" "$runs"
fi
