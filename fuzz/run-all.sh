#!/usr/bin/env bash
# Fuzzes every target for SECONDS (60 by default) each. Ends with an error, and the path of the input, when one fails.
#
#   fuzz/run-all.sh [SECONDS] [TARGET...]
#
# No sanitizer: what is fuzzed is Rust without unsafe code, in which AddressSanitizer finds nothing, and without it targets run
# several times as often. Overflow checks and debug assertions are on (cargo-fuzz's default). The stable compiler does, with the
# coverage instrumentation that cargo-fuzz asks for unlocked.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
shift || true
version=0.13.2
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=$PWD/target

tools=$CARGO_TARGET_DIR/tools
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
  cargo install cargo-fuzz --version "$version" --locked --quiet --target-dir "$tools" --root "$tools"
fi
PATH=$tools/bin:$PATH

cargo fuzz build --fuzz-dir . -s none
binaries=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release
KALEIDOSCOPE_SEEDS=corpus "$binaries/seeds" -runs=0 >target/seeds.log 2>&1 || { cat target/seeds.log; exit 1; }

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(cargo fuzz list --fuzz-dir . | grep -vx seeds)
fi

# The binaries are run directly, so that nothing is built again; as many at a time as there are cores.
run() {
  mkdir -p "corpus/$1" "artifacts/$1"
  local log=artifacts/$1/log
  if "$binaries/$1" "corpus/$1" -artifact_prefix="artifacts/$1/" -max_total_time="$seconds" -max_len="$(max_len "$1")" \
    -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 >"$log" 2>&1; then
    printf '%-14s passed: %s runs, %s inputs kept\n' "$1" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$(find "corpus/$1" -type f | wc -l)"
  else
    tail -n 30 "$log"
    printf '%-14s FAILED: %s\n' "$1" "$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
    return 1
  fi
}

# Long inputs only where the format needs them.
max_len() {
  case $1 in
    btf | manifest | recording | descriptor) echo 262144 ;;
    kallsyms | image_headers) echo 65536 ;;
    wire_client | wire_server | dedup) echo 16384 ;;
    *) echo 4096 ;;
  esac
}

failed=0
running=0
for target in "${targets[@]}"; do
  run "$target" &
  running=$((running + 1))
  if [ "$running" -ge "$(nproc)" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit $failed
