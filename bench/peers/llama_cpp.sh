#!/bin/sh
# Builds llama.cpp from the source package of its Python binding and compares its speed with
# qbench's on SmolLM2-135M, or builds it for gpu.sh. Their code stays in a scratch folder and is
# never copied into this tree.
set -eu

version=0.3.36      # of llama-cpp-python, whose source package holds a whole llama.cpp
sdist_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
tools='llama-bench llama-perplexity llama-quantize'

usage() {
    cat <<EOF
usage: bench/peers/llama_cpp.sh [options] [GGUF]

Builds llama-bench, llama-perplexity and llama-quantize (llama-cpp-python $version, CPU only, for
this machine's processor, OpenMP), makes the F16, Q8_0 and Q4_0 variants of GGUF, then times
llama-bench and qbench in turn and prints one table. What is there already is used again.
Without GGUF, tools/fetch_smollm2.sh supplies SmolLM2-135M-Instruct. All variants come from that
4-bit file, so that they serve for timing, not for quality.

  --dir DIR        scratch folder (default: \${XDG_CACHE_HOME:-\$HOME/.cache}/qbench/peers)
  --model FILE     the same model for qbench (default: models/smollm2.bin; GGUF itself, if given)
  --types LIST     variants to time (default: Q8_0,Q4_0,Q4_1,F16)
  --rounds N       rounds, each llama.cpp then qbench (default: 5)
  --threads N      threads of both (default: 2)
  --out FILE       JSON lines to append to (default: results/peers_llama_cpp.jsonl)
  --cuda ARCH      build llama-bench and llama-batched-bench with CUDA, for GPUs of compute
                   capability ARCH (90: H100), say where the programs are, and stop
  --build-only     build, say where the programs are, and stop
  -h, --help       this text

environment:
  QBENCH   the qbench binary (default: build/qbench); without it llama.cpp is timed alone
  PYTHON   the Python that has pip (default: python3)
  JOBS     compilers at a time (default: the number of processors)

exit status: 0 done, 1 a step failed, 2 usage
EOF
}

say() { printf 'llama_cpp: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
bad_usage() { say "$* (see --help)"; exit 2; }

root=$(realpath -- "$(dirname -- "$0")/../..")
command_line="bench/peers/llama_cpp.sh${*:+ $*}"
dir=${XDG_CACHE_HOME:-$HOME/.cache}/qbench/peers
types=Q8_0,Q4_0,Q4_1,F16
rounds=5 threads=2 build_only='' cuda='' gguf='' model=''
out=$root/results/peers_llama_cpp.jsonl
qbench=${QBENCH:-$root/build/qbench}
python=${PYTHON:-python3}
jobs=${JOBS:-$(nproc)}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --build-only) build_only=1; shift; continue ;;
    --dir | --model | --types | --rounds | --threads | --out | --cuda)
        [ $# -ge 2 ] || bad_usage "$1 needs a value" ;;
    -*) bad_usage "unknown option: $1" ;;
    *) [ -z "$gguf" ] || bad_usage "more than one GGUF: $1"; gguf=$1; shift; continue ;;
    esac
    case $1 in
    --dir) dir=$2 ;;
    --model) model=$2 ;;
    --types) types=$2 ;;
    --rounds) rounds=$2 ;;
    --threads) threads=$2 ;;
    --out) out=$2 ;;
    --cuda) cuda=$2 build_only=1 ;;
    esac
    shift 2
done
for number in "$rounds" "$threads" "${cuda:-1}"; do
    case $number in
    '' | *[!0-9]* | 0*) bad_usage "expected a positive number, found '$number'" ;;
    esac
done

need() { command -v "$1" >/dev/null 2>&1 || die "$1 not found; on Debian: apt install $2"; }

# ---- build -------------------------------------------------------------------------------------

mkdir -p "$dir"
dir=$(realpath -- "$dir")
home=$dir/llama-cpp-python-$version
build=$home/build${cuda:+-cuda}
bin=$build/bin
[ -z "$cuda" ] || tools='llama-bench llama-batched-bench'

build() {
    need "$python" python3
    need cmake cmake
    need c++ g++
    [ -z "$cuda" ] || need nvcc nvidia-cuda-toolkit
    # What a finished build depends on; code for this processor may not run on another.
    built_for="$version${cuda:+ | CUDA $cuda} | $(c++ --version | head -n 1) | $(sed -n \
        's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    if [ "$(cat "$build.for" 2>/dev/null)" = "$built_for" ]; then
        say "already built: $bin"
        return
    fi

    if [ ! -d "$home/source" ]; then
        "$python" -m pip --version >/dev/null 2>&1 ||
            die "$python has no pip; on Debian: apt install python3-pip"
        tmp=$(mktemp -d "$dir/fetch.tmp.XXXXXX")
        trap 'rm -rf "$tmp"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        say "downloading the source of llama-cpp-python $version (77 MB)"
        # pip asks a source package for its metadata, for which it fetches the build backend too.
        printf 'llama-cpp-python==%s --hash=sha256:%s\n' "$version" "$sdist_sha256" >"$tmp/pin"
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
            --no-binary llama-cpp-python --dest "$tmp" -r "$tmp/pin" >"$tmp/pip.log" 2>&1 ||
            die "cannot download llama-cpp-python $version;" \
                "is the Python package index reachable?" \
                "pip said: $(grep -v '^ *$' "$tmp/pip.log" | tail -n 1)"
        mkdir "$tmp/source"
        tar -xzf "$tmp"/*.tar.gz -C "$tmp/source" --strip-components=3 --wildcards \
            '*/vendor/llama.cpp/*' || die "the source package holds no vendor/llama.cpp"
        mkdir -p "$home"
        mv "$tmp/source" "$home/source"
        rm -rf "$tmp"
    fi

    rm -f "$build.for"
    say "building $tools (minutes; log in $build.log)"
    # Given no commit, their build would ask git, and could find that of a tree around the scratch.
    set --
    # Without NCCL, and with the one type of attention cache that is timed: it takes long enough.
    [ -z "$cuda" ] || set -- -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$cuda-real" \
        -DGGML_CUDA_NCCL=OFF -DGGML_CUDA_FA_QUANTS=f16-f16
    # shellcheck disable=SC2086  # $tools is a list
    { cmake -S "$home/source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_NUMBER=0 \
        -DLLAMA_BUILD_COMMIT="llama-cpp-python-$version" "$@" &&
        cmake --build "$build" -j "$jobs" --target $tools; } >"$build.log" 2>&1 ||
        die "the build failed: $(grep -i error "$build.log" | head -n 1) (see $build.log)"
    printf '%s\n' "$built_for" >"$build.for"
    say "built: $bin"
}

build
[ -z "$build_only" ] || exit 0

# ---- models ------------------------------------------------------------------------------------

if [ -z "$gguf" ]; then
    QBENCH=$qbench PYTHON=$python "$root/tools/fetch_smollm2.sh"
    gguf=$root/models/smollm2-135m-instruct.gguf
    model=${model:-$root/models/smollm2.bin}
fi
[ -r "$gguf" ] || die "$gguf: cannot read it"
gguf=$(realpath -- "$gguf")
model=$(realpath -m -- "${model:-$gguf}")

# Names the file of one variant, making it first where it is not there yet or older than its source.
variant() {
    made=$dir/models/$(basename -- "$gguf" .gguf)-$1.gguf
    if [ ! -e "$made" ] || [ -n "$(find "$gguf" -newer "$made")" ]; then
        mkdir -p "$dir/models"
        say "making the $1 variant"
        rm -f "$made.tmp"
        "$bin/llama-quantize" --allow-requantize "$gguf" "$made.tmp" "$1" "$jobs" \
            >"$made.log" 2>&1 || die "llama-quantize to $1 failed: $(tail -n 1 "$made.log")"
        mv -f "$made.tmp" "$made"
        rm -f "$made.log"
    fi
    printf '%s\n' "$made"
}

# ---- compare -----------------------------------------------------------------------------------

set -- --llama-bench "$bin/llama-bench" --qbench "$qbench" --model "$model" \
    --threads "$threads" --rounds "$rounds" --out "$out" --command "$command_line" \
    --version "llama-cpp-python=$version" \
    --version "llama.cpp=$("$bin/llama-bench" --version 2>&1 |
        sed -n 's/^version: \([^ ]*\).*/\1/p')" \
    --version "ggml=$(sed -n 's/^-- ggml version: //p' "$build.log")" \
    --version "compiler=$(c++ --version | head -n 1)"
for type in $(printf '%s\n' "$types" | tr ',' ' '); do
    made=$(variant "$type")
    set -- "$@" --gguf "$type=$made"
done
exec "$python" "$root/bench/peers/peers.py" llama.cpp "$@"
