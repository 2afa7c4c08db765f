#!/bin/sh
# rustc-fuzz.sh RUSTC ARGUMENTS...: rustc wrapper (RUSTC_WORKSPACE_WRAPPER) that builds Ringfence's crates for fuzzing,
# with the compiler's coverage counters for libFuzzer. All flags are stable ones. The last flag keeps nested conditions
# separate: libFuzzer would have to satisfy folded ones all at once. Dependencies are built without instrumentation.
case " $* " in
  *" build_script_build "*) exec "$@" ;;      # runs during the build, without libFuzzer
esac
exec "$@" --cfg fuzzing -Copt-level=1 -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
