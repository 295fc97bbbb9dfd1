#!/bin/sh
# Compares qbench's training speed on one GPU with torch.compile's.
set -eu

usage() {
    cat <<EOF_USAGE
usage: bench/peers/train.sh [options]

Trains GPT2 shapes on random tokens with qbench and with torch.compile in turn on the first GPU,
prints one table with the goals and appends one JSON line. A side that is not there is left out
with a message.

  --dir DIR          scratch folder (default: \${XDG_CACHE_HOME:-\$HOME/.cache}/qbench/peers)
  --only LIST        of qbench and torch (default: both, in this order)
  --rows LIST        numbers of the table's rows, from 0 (default: all)
  --torch-rows LIST  those of torch, which compiles for half a minute each (default: --rows)
  --columns LIST     numbers of its columns, from 0 (default: all)
  --rounds N         turns that the columns of a row take (default: 1)
  --batch N          windows a step (default: 131072 tokens)
  --steps N          timed steps of a turn (default: 20)
  --torch OPTIONS    passed to torch_train.py, as one word
  --out FILE         JSON lines to append to (default: results/peers_train.jsonl)
  -h, --help         this text

environment:
  QBENCH  the qbench binary, built with CUDA (default: build/qbench)
  PYTHON  Python 3 with torch (default: python3)

exit status: 0 done, 1 nothing could be measured or a step failed, 2 usage
EOF_USAGE
}

say() { printf 'train: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
bad_usage() { say "$* (see --help)"; exit 2; }

root=$(realpath -- "$(dirname -- "$0")/../..")
command_line="bench/peers/train.sh${*:+ $*}"
dir=${XDG_CACHE_HOME:-$HOME/.cache}/qbench/peers
torch_options='' out=$root/results/peers_train.jsonl
passed=''

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --dir | --only | --rows | --torch-rows | --columns | --rounds | --batch | --steps | --torch | --out)
        [ $# -ge 2 ] || bad_usage "$1 needs a value" ;;
    *) bad_usage "unknown argument: $1" ;;
    esac
    case $1 in
    --dir) dir=$2 ;;
    --torch) torch_options=$2 ;;
    --out) out=$2 ;;
    *)
        case $2 in
        '' | *[!a-z0-9,]*) bad_usage "$1: expected words or numbers with commas, found '$2'" ;;
        esac
        passed="$passed $1 $2" ;;
    esac
    shift 2
done
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || die "$python not found; on Debian: apt install python3"
mkdir -p "$dir"

# shellcheck disable=SC2086 # words without spaces
exec "$python" "$root/bench/peers/train.py" $passed --dir "$dir" --python "$python" \
    --qbench "${QBENCH:-$root/build/qbench}" --torch-option="$torch_options" --out "$out" \
    --command "$command_line"
