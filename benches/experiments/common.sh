# Sourced by the experiment scripts, which set runs_name first: where things are, and runs that are
# skipped when finished and continued when interrupted.
#
# TERCET_RUNS      where runs go (default: runs/$runs_name)
# TERCET_THREADS   threads of each run (default: 2)
# TERCET_BIN       the command (default: built from this checkout)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
runs=${TERCET_RUNS:-$root/runs/$runs_name}
threads=${TERCET_THREADS:-2}
export RAYON_NUM_THREADS=$threads
tercet=${TERCET_BIN:-}
if [ -z "$tercet" ]; then
  (cd "$root" && cargo build --bin tercet)
  tercet=${CARGO_TARGET_DIR:-$root/target}/debug/tercet
fi
mkdir -p "$runs"

# run NAME verb options…: skips a finished run, continues an interrupted one.
run() {
  local out=$runs/$1; shift
  [ -f "$out/report.json" ] && return 0
  local resume=()
  [ -f "$out/config.toml" ] && resume=(--resume)
  echo "== $(basename "$out")" >&2
  "$tercet" "$@" --out "$out" --threads "$threads" "${resume[@]}" --json >"$out.log"
}

# copied FROM TO [command…]: a writable copy of a data set, made once; the command changes it, from inside.
copied() {
  local from=$1 to=$2; shift 2
  [ -d "$to" ] && return 0
  rm -rf "$to.partial"
  cp -r "$from" "$to.partial"
  chmod -R u+w "$to.partial"
  [ $# -eq 0 ] || (cd "$to.partial" && "$@")
  mv "$to.partial" "$to"
}

# report FILE command…: the command's output, in place only when it is whole.
report() {
  local out=$1; shift
  "$@" >"$out.partial"
  mv "$out.partial" "$out"
}

# pack NAME FOLDER: exports a student as an int8 bundle and evaluates it through the runtime.
pack() {
  local out=$runs/$1 folder=$2
  [ -f "$out.bundle.json" ] && return 0
  echo "== bundle of $1" >&2
  report "$out.export.json" "$tercet" export --student "$out" --data "$folder" --out "$out.tercet" --json
  report "$out.run.json" "$tercet" evaluate --run "$out" --data "$folder" --slices --json
  report "$out.bundle.json" "$tercet" evaluate --bundle "$out.tercet" --data "$folder" --slices --json
}

# slices NAME FOLDER: cold and warm items of a run that is not a student.
slices() {
  [ -f "$runs/$1.run.json" ] || report "$runs/$1.run.json" "$tercet" evaluate --run "$runs/$1" --data "$2" --slices --json
}
