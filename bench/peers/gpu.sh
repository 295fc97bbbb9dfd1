#!/bin/sh
# Compares qbench's speed on one GPU with torch's and llama.cpp's on GPT2-shaped random models.
set -eu

usage() {
    cat <<EOF
usage: bench/peers/gpu.sh [options]

Makes random models of GPT2 shapes (qbench's own format and GGUF), runs qbench, qbench with all
schemes on a text, torch and llama.cpp in turn on the first GPU, prints one table with the goals and
appends one JSON line. A peer that is not there is left out with a message.

  --dir DIR        scratch folder (default: \${XDG_CACHE_HOME:-\$HOME/.cache}/qbench/peers)
  --models LIST    presets of qbench convert --random (default: gpt2-1.4b,gpt2-130m)
  --types LIST     of llama.cpp's files (default: F16,Q8_0,Q4_0)
  --only LIST      of qbench, all, torch and llama.cpp (default: each, in this order)
  --schemes LIST   of qbench (default: full,fine,moderate,coarse,zeropoint4)
  --tokens N       of the text for all schemes (default: 100000)
  --torch OPTIONS  passed to torch_gpu.py, as one word
  --llama-models LIST    presets for llama.cpp (default: those of --models)
  --llama-batches LIST   several sequences for llama.cpp, as batch x prefilled x decoded tokens
                         (default: 16x256x64,64x256x0,16x1024x0)
  --out FILE       JSON lines to append to (default: results/peers_gpu.jsonl)
  -h, --help       this text

environment:
  QBENCH         the qbench binary, built with CUDA (default: build/qbench)
  LLAMA_BIN      folder of llama-bench and llama-batched-bench, built with CUDA (default: what
                 llama_cpp.sh --cuda builds)
  LLAMA_VERSION  what the record calls them
  PYTHON         Python 3 with NumPy and torch, and torchao for its rows (default: python3)

exit status: 0 done, 1 nothing could be measured or a step failed, 2 usage
EOF
}

say() { printf 'gpu: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
bad_usage() { say "$* (see --help)"; exit 2; }

root=$(realpath -- "$(dirname -- "$0")/../..")
here=$root/bench/peers
command_line="bench/peers/gpu.sh${*:+ $*}"
dir=${XDG_CACHE_HOME:-$HOME/.cache}/qbench/peers
models=gpt2-1.4b,gpt2-130m types=F16,Q8_0,Q4_0 only=qbench,all,torch,llama.cpp
schemes=full,fine,moderate,coarse,zeropoint4 tokens=100000 torch_options=''
llama_models='' llama_batches=16x256x64,64x256x0,16x1024x0
out=$root/results/peers_gpu.jsonl
qbench=${QBENCH:-$root/build/qbench}
python=${PYTHON:-python3}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --dir | --models | --types | --only | --schemes | --tokens | --torch | --out | \
        --llama-models | --llama-batches)
        [ $# -ge 2 ] || bad_usage "$1 needs a value" ;;
    *) bad_usage "unknown argument: $1" ;;
    esac
    case $1 in
    --dir) dir=$2 ;;
    --models) models=$2 ;;
    --types) types=$2 ;;
    --only) only=$2 ;;
    --schemes) schemes=$2 ;;
    --tokens) tokens=$2 ;;
    --torch) torch_options=$2 ;;
    --out) out=$2 ;;
    --llama-models) llama_models=$2 ;;
    --llama-batches) llama_batches=$2 ;;
    esac
    shift 2
done
case $tokens in
'' | *[!0-9]* | 0*) bad_usage "expected a positive number, found '$tokens'" ;;
esac
command -v "$python" >/dev/null 2>&1 || die "$python not found; on Debian: apt install python3"
mkdir -p "$dir/models"
dir=$(realpath -- "$dir")
llama=${LLAMA_BIN:-$(find "$dir" -path '*/build-cuda/bin' -type d | head -n 1)}

wanted() { case ",$only," in *",$1,"*) return 0 ;; *) return 1 ;; esac; }
list() { printf '%s\n' "$1" | tr ',' ' '; }

# ---- models and text ---------------------------------------------------------------------------

# Without qbench nothing runs on its models; torch draws its own. They are made side by side.
set -- --qbench "$qbench"
for model in $(list "$models"); do
    made=$dir/models/$model.bin
    if { wanted qbench || wanted all; } && [ ! -e "$made" ] && [ -x "$qbench" ]; then
        say "making $model"
        "$qbench" convert --random "$model" "$made" >/dev/null &
    fi
    set -- "$@" --model "$model=$made"
done
if wanted llama.cpp && [ -x "$llama/llama-bench" ]; then
    for model in $(list "${llama_models:-$models}"); do
        for type in $(list "$types"); do
            made=$dir/models/$model-$type.gguf
            if [ ! -e "$made" ]; then
                say "making $model as $type"
                "$python" "$here/make_gguf.py" "$model" "$type" "$made" &
            fi
            set -- "$@" --gguf "$model:$type=$made"
        done
    done
fi
wait # what could not be made is left out where it is used

# The random models' tokens are single bytes: the built-in text, as often as makes enough of them.
if wanted all; then
    text=$dir/built-in-$tokens.txt
    n=0
    : >"$text.tmp"
    while [ "$n" -le "$tokens" ]; do
        cat "$root/share/text/eval.txt" >>"$text.tmp"
        n=$(wc -c <"$text.tmp")
    done
    mv -f "$text.tmp" "$text"
    set -- "$@" --text "$text" --max-tokens "$tokens"
fi

# ---- compare -----------------------------------------------------------------------------------

exec "$python" "$here/gpu.py" "$@" --only "$only" --schemes "$schemes" --python "$python" \
    --torch-option="$torch_options" --llama "$llama" --llama-batches "$llama_batches" \
    --llama-version "${LLAMA_VERSION:-}" --out "$out" --command "$command_line"
