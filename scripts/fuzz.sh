#!/usr/bin/env bash
# fuzz.sh [keep]: run each target of fuzz/ for FUZZ_SECONDS, one per core at the same time, from the kept corpus, and
# print counts. FUZZ_TARGETS selects targets. A finding is an error: it is kept in target/fuzz/findings and printed with
# the command that replays it. `keep` adds inputs of earlier runs with new coverage to the corpus, minimized.
set -euo pipefail
cd "$(dirname "$0")/.."
SECONDS_EACH=${FUZZ_SECONDS:-60}
OUT=$PWD/target/fuzz
# Bytes of an input at most: more than the longest seed. Longer inputs are slower and find the same.
MAX_LEN=8192
# Seconds for one input, and memory of one process: an input that needs more could stop a node.
SLOW=10 MEMORY_MIB=1024

FUZZER=$OUT/fuzzer
RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-fuzz.sh cargo build --locked --package ringfence-fuzz
mkdir -p "$OUT/findings" "$OUT/logs"
cp target/debug/ringfence-fuzz "$FUZZER"      # the next ordinary build replaces that file
# shellcheck disable=SC2206
TARGETS=(${FUZZ_TARGETS:-$(cd fuzz/corpus && echo *)})

search() {                    # search TARGET
  local dict=fuzz/dictionaries/$1.dict
  [[ -f $dict ]] || dict=
  mkdir -p "$OUT/corpus/$1" "$OUT/findings/$1"
  FUZZ_TARGET=$1 "$FUZZER" -max_total_time="$SECONDS_EACH" -timeout=$SLOW -rss_limit_mb=$MEMORY_MIB -max_len=$MAX_LEN \
    -print_final_stats=1 -artifact_prefix="$OUT/findings/$1/" ${dict:+-dict=$dict} \
    "$OUT/corpus/$1" "fuzz/corpus/$1" >"$OUT/logs/$1" 2>&1 || true
}
keep() {                      # keep TARGET
  mkdir -p "$OUT/corpus/$1"
  FUZZ_TARGET=$1 "$FUZZER" -merge=1 -max_len=$MAX_LEN "fuzz/corpus/$1" "$OUT/corpus/$1" 2>&1 | tail -n 1
}
export -f search keep
export SECONDS_EACH OUT MAX_LEN SLOW MEMORY_MIB FUZZER
if [[ ${1:-} == keep ]]; then
  printf '%s\n' "${TARGETS[@]}" | xargs -P "$(nproc)" -I{} bash -c 'keep {}'
  du -sh --apparent-size fuzz/corpus
  exit
fi
rm -rf "$OUT/findings" && mkdir -p "$OUT/findings"
printf '%s\n' "${TARGETS[@]}" | xargs -P "$(nproc)" -I{} bash -c 'search {}'

failed=0
printf '%-20s %12s %10s %8s %8s\n' target executions per-second coverage new
for target in "${TARGETS[@]}"; do
  log=$OUT/logs/$target
  stat() { awk -v key="stat::$1:" '$1 == key { print $2 }' "$log"; }
  coverage=$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1 | cut -d' ' -f2 || true)
  printf '%-20s %12s %10s %8s %8s\n' "$target" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" \
    "${coverage:--}" "$(stat new_units_added)"
  for finding in "$OUT/findings/$target"/*; do
    [[ -e $finding ]] || continue
    failed=1
    echo "  FOUND: cargo run -p ringfence-fuzz -- $target $finding"
    grep -m 3 -E "panicked at|^==.*(ERROR|libFuzzer)|SUMMARY" -A 1 "$log" | sed 's/^/    /' || true
  done
  if [[ -z $(stat number_of_executed_units) && ! -e $(echo "$OUT/findings/$target"/* | cut -d' ' -f1) ]]; then
    failed=1
    echo "  target aborted: $log"
  fi
done
exit $failed
