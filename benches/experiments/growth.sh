#!/usr/bin/env bash
# Growth: what training, distilling, exporting and serving cost as interactions and items grow.
#
#   benches/experiments/growth.sh [interactions|items|pressed|lists]...
#
# Options: TERCET_RUNS, TERCET_BIN and TERCET_THREADS (default here: 1), as in common.sh;
# TERCET_SIZES, TERCET_ITEM_SIZES: the points (default: "10000 100000 1000000 10000000" interactions
# and "100000 1000000 10000000" items); TERCET_PYTHON: a Python with numpy (default: python3), which
# only the items need. Finished steps are skipped. Data and runs of a point are removed once its steps
# are measured, except for those of 100,000 interactions, whose student the items need.
#
# `pressed` makes the largest table of items in 2 GiB of memory and serves it in 128 MiB, pages of files
# included, where control groups can be made (Linux, usually root); elsewhere it says that it cannot.
# TERCET_EXPORT_MIB and TERCET_SERVE_MIB are other limits.
#
# `lists` times the way from a history to the best 100 over 100,000 and 1,000,000 items, the whole table
# and in partitions. Nothing else should run beside it.
#
# What is measured is cost, not quality: a few epochs, and rankings of 2,000 users. 10^7 of either take
# 9 GB of disk at most.
set -euo pipefail
runs_name=growth
TERCET_THREADS=${TERCET_THREADS:-1}
. "$(dirname "$0")/common.sh"
python=${TERCET_PYTHON:-python3}
sizes=${TERCET_SIZES:-10000 100000 1000000 10000000}
item_sizes=${TERCET_ITEM_SIZES:-100000 1000000 10000000}
most=(--max-users 2000)

# step NAME command…: measures a command, once.
step() {
  local out=$runs/$1.json; shift
  [ -f "$out" ] && return 0
  echo "== $(basename "$out" .json)" >&2
  "$python" "$here/growth.py" measure "$out" "$@"
}

# done_with NAME…: whether all these steps are measured.
done_with() {
  local name
  for name in "$@"; do [ -f "$runs/$name.json" ] || return 1; done
}

# The shop has 20 events a user and two items for five users, at every size.
shop() {
  local n=$1 d=$runs/shop-$1
  done_with synth-$n && [ -d "$d" ] && return 0
  rm -rf "$d" "$runs/synth-$n.json"
  step synth-$n "$tercet" data synth --users $((n / 20)) --items $((n / 50)) --seed 1 --out "$d" --no-counts
}

# trained NAME verb options…: a training run of at most two epochs.
trained() {
  local name=$1; shift
  done_with "$name" && [ -f "$runs/$name/report.json" ] && return 0
  rm -rf "$runs/$name" "$runs/$name.json"
  step "$name" "$tercet" "$@" "${most[@]}" --seed 1 --threads "$threads" --out "$runs/$name" --json
}

student() {
  local n=$1 d=$runs/shop-$1
  trained bpr-$n train --model bpr --data "$d" --epochs 2 --set sparse=true
  # 20 steps of 256 examples at every size: what a step costs follows the items.
  trained student-$n distill --teacher "$runs/bpr-$n" --data "$d" --epochs 1 --set cuts=12 --set examples=5120
}

interactions() {
  local n d b
  for n in $sizes; do
    d=$runs/shop-$n b=$runs/bundle-$n.tercet
    local all=(synth-$n bpr-$n student-$n lightgcn-$n export-$n bench-$n recommend-$n)
    [ "$n" -gt 1000000 ] || all+=(bpr-dense-$n)
    if ! done_with "${all[@]}"; then
      shop $n
      student $n
      if ! done_with export-$n bench-$n recommend-$n; then
        rm -f "$runs/export-$n.json"
        step export-$n "$tercet" export --student "$runs/student-$n" --data "$d" --out "$b" "${most[@]}" --threads "$threads" --json
        step bench-$n "$tercet" bench "$b" --json
        step recommend-$n "$tercet" recommend --bundle "$b" --history "$(sed -n 2p "$d/items.csv" | cut -d, -f1)" --json
      fi
      # 10 steps an epoch, because each of them passes the whole graph: with the default batch of
      # 2048 an epoch costs the square of the interactions.
      trained lightgcn-$n train --model lightgcn --data "$d" --epochs 1 --set batch=$((n / 10))
      # What `sparse` is for; 10^7 would take hours.
      [ "$n" -gt 1000000 ] || trained bpr-dense-$n train --model bpr --data "$d" --epochs 1
    fi
    [ "$n" = 100000 ] || rm -rf "$d" "$b" "$runs"/{bpr,bpr-dense,student,lightgcn}-$n
  done
}

items() {
  local n b s d=$runs/shop-100000
  for n in $item_sizes; do
    b=$runs/items-$n.tercet s=$runs/shards-$n
    done_with items-export-$n items-inspect-$n items-recommend-$n items-bench-$n items-limited-$n && continue
    shop 100000
    student 100000
    rm -f "$runs/items-export-$n.json"
    "$python" "$here/growth.py" shards "$d/items.csv" $n "$s"
    step items-export-$n "$tercet" export --student "$runs/student-100000" --data "$d" --shards "$s" --out "$b" --threads "$threads" --json
    rm -rf "$s"
    step items-inspect-$n "$tercet" inspect "$b" --json
    step items-recommend-$n "$tercet" recommend --bundle "$b" --history "$(sed -n 2p "$d/items.csv" | cut -d, -f1)" --json
    step items-bench-$n "$tercet" bench "$b" --runs 10 --json
    # 16 MiB for everything that a process has but mapped files and code.
    step items-limited-$n prlimit --data=16777216 "$tercet" recommend --bundle "$b" --history "$(sed -n 2p "$d/items.csv" | cut -d, -f1)" --json
    rm -rf "$b"
  done
}

# pressed_step NAME MIB FOLDER… -- command…: as step, within a limit.
pressed_step() {
  local out=$runs/$1.json; shift
  [ -f "$out" ] && return 0
  echo "== $(basename "$out" .json)" >&2
  "$python" "$here/growth.py" pressed "$out" "$@"
}

pressed() {
  local n=${item_sizes##* } mib=${TERCET_SERVE_MIB:-128} d=$runs/shop-100000
  local b=$runs/items-$n.tercet s=$runs/shards-$n
  done_with pressed-export-$n pressed-recommend-$n pressed-bench-$n && return 0
  if ! "$python" "$here/growth.py" groups; then
    echo "skipped: pressed" >&2
    return 0
  fi
  shop 100000
  student 100000
  if [ ! -d "$b" ]; then
    rm -f "$runs/pressed-export-$n.json"
    "$python" "$here/growth.py" shards "$d/items.csv" $n "$s"
    pressed_step pressed-export-$n "${TERCET_EXPORT_MIB:-2048}" "$s" -- "$tercet" export --student "$runs/student-100000" --data "$d" --shards "$s" --out "$b" --threads "$threads" --json
    rm -rf "$s"
  fi
  pressed_step pressed-recommend-$n $mib "$b" -- "$tercet" recommend --bundle "$b" --history "$(sed -n 2p "$d/items.csv" | cut -d, -f1)" --json
  pressed_step pressed-bench-$n $mib "$b" -- "$tercet" bench "$b" --runs 10 --json
  rm -rf "$b"
}

lists() {
  local n p b s d=$runs/shop-100000
  # Four times the root of the items, as `tercet export --help` proposes.
  for n in 100000:1264 1000000:4000; do
    p=${n#*:} n=${n%:*}
    b=$runs/lists-$n s=$runs/shards-$n
    done_with lists-$n lists-partitioned-$n && continue
    shop 100000
    student 100000
    if [ ! -d "$b-partitioned.tercet" ]; then
      "$tercet" export --student "$runs/student-100000" --data "$d" --table f32 --out "$runs/f32.tercet" "${most[@]}" --json >/dev/null
      "$python" "$here/growth.py" shards "$d/items.csv" $n "$s" "$runs/f32.tercet"
      rm -f "$runs"/lists-{export,partitioned-export}-$n.json
      step lists-export-$n "$tercet" export --student "$runs/student-100000" --data "$d" --shards "$s" --out "$b.tercet" --threads "$threads" --json
      step lists-partitioned-export-$n "$tercet" export --student "$runs/student-100000" --data "$d" --shards "$s" --partitions $p --out "$b-partitioned.tercet" --threads "$threads" --json
      rm -rf "$s"
    fi
    step lists-$n "$tercet" bench "$b.tercet" --runs 1000 -k 100 --json
    step lists-partitioned-$n "$tercet" bench "$b-partitioned.tercet" --runs 1000 -k 100 --json
    rm -rf "$b.tercet" "$b-partitioned.tercet" "$runs/f32.tercet"
  done
}

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(interactions items pressed lists)
for part in "${parts[@]}"; do "$part"; done
"$python" "$here/growth.py" report "$runs" "$root/benches/results/growth.svg"
