#!/bin/sh
# Compares qbench's int8 matrix product with oneDNN's on the layer shapes of SmolLM2-135M.
set -eu

# M tokens by the layers' outputs N and inputs K: q and o, k and v, gate and up, down; one larger.
shapes='512x576x576 512x192x576 512x1536x576 512x576x1536 512x2048x2048'

usage() {
    cat <<EOF
usage: bench/peers/onednn.sh [options]

Compiles bench/peers/onednn_matmul.c against the installed oneDNN (Debian: libdnnl-dev), times its
u8 x s8 to s32 matmul and qbench's gemm_s8 benchmark in turn, and prints one table in GOP/s.
Shapes, M x N x K: $shapes

  --dir DIR        scratch folder (default: \${XDG_CACHE_HOME:-\$HOME/.cache}/qbench/peers)
  --rounds N       rounds, each oneDNN then qbench (default: 5)
  --threads LIST   numbers of threads (default: 1,2)
  --out FILE       JSON lines to append to (default: results/peers_onednn.jsonl)
  -h, --help       this text

environment:
  QBENCH_BENCH      qbench's benchmark binary (default: build/bench/qbench_bench); without it
                    oneDNN is timed alone
  CC                C compiler (default: cc)
  CPATH, LIBRARY_PATH, LD_LIBRARY_PATH   point at another oneDNN, of API version 2 or 3
  PYTHON            Python 3 (default: python3)

exit status: 0 done, 1 a step failed, 2 usage
EOF
}

say() { printf 'onednn: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
bad_usage() { say "$* (see --help)"; exit 2; }

root=$(realpath -- "$(dirname -- "$0")/../..")
command_line="bench/peers/onednn.sh${*:+ $*}"
dir=${XDG_CACHE_HOME:-$HOME/.cache}/qbench/peers
rounds=5 threads=1,2
out=$root/results/peers_onednn.jsonl
bench=${QBENCH_BENCH:-$root/build/bench/qbench_bench}
cc=${CC:-cc}
python=${PYTHON:-python3}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --dir | --rounds | --threads | --out) [ $# -ge 2 ] || bad_usage "$1 needs a value" ;;
    *) bad_usage "unknown argument: $1" ;;
    esac
    case $1 in
    --dir) dir=$2 ;;
    --rounds) rounds=$2 ;;
    --threads) threads=$2 ;;
    --out) out=$2 ;;
    esac
    shift 2
done
threads=$(printf '%s\n' "$threads" | tr ',' ' ')
for number in "$rounds" $threads; do
    case $number in
    '' | *[!0-9]* | 0*) bad_usage "expected a positive number, found '$number'" ;;
    esac
done
[ -n "$threads" ] || bad_usage "--threads needs a number"

command -v "$cc" >/dev/null 2>&1 || die "$cc not found; on Debian: apt install gcc"
command -v "$python" >/dev/null 2>&1 || die "$python not found; on Debian: apt install python3"

mkdir -p "$dir"
program=$(realpath -- "$dir")/onednn_matmul
printf '#include <dnnl.h>\n' | "$cc" -E -x c - >/dev/null 2>&1 ||
    die "dnnl.h not found; on Debian: apt install libdnnl-dev"
"$cc" -std=c17 -O2 -o "$program" "$root/bench/peers/onednn_matmul.c" -ldnnl ||
    die "cannot compile onednn_matmul.c"

set -- --onednn "$program" --compiler "$("$cc" --version | head -n 1)" --qbench-bench "$bench" \
    --rounds "$rounds" --out "$out" --command "$command_line"
for shape in $shapes; do set -- "$@" --shape "$shape"; done
for n in $threads; do set -- "$@" --threads "$n"; done
exec "$python" "$root/bench/peers/peers.py" onednn "$@"
