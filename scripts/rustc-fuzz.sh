#!/bin/sh
# rustc-fuzz.sh RUSTC ARGUMENTS...: what cargo runs instead of rustc for Ringfence's own crates (RUSTC_WORKSPACE_WRAPPER) when
# they are built to be fuzzed. The compiler's own coverage counters, which libFuzzer reads: all flags are stable ones.
# The last flag keeps nested conditions apart: folded into one they are only found all at once.
# Dependencies are built as ever: their code is not what is searched, and nothing of them is built twice.
case " $* " in
  *" build_script_build "*) exec "$@" ;;      # runs now, without libFuzzer
esac
exec "$@" --cfg fuzzing -Copt-level=1 -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
