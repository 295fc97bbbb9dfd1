#!/bin/sh
# Runs the GPU suite; needs only the built programs, so that their folder can be carried.
set -u

usage() {
    cat <<EOT
usage: tools/test_cuda.sh [--sanitize] [--only PATTERN] [FOLDER]

Runs the programs test_cuda_* of FOLDER (default: build/tests/cuda of this
checkout; build them with \`make test-cuda\`). Without a GPU each test is skipped
with the reason. The last line is \`N passed, N failed, N skipped\`.

--sanitize      then runs them again under compute-sanitizer's memcheck,
                racecheck, initcheck and synccheck, at reduced sizes
                (QB_TEST_SMALL=1); a program and tool count as one test each
--only PATTERN  only programs whose name matches the shell pattern

A program may take QB_TEST_SECONDS (default 300), under a tool four times that.

exit status: 0 nothing failed, 1 something did, 2 usage or nothing to run
EOT
}

sanitize=
only='*'
folder=$(dirname -- "$0")/../build/tests/cuda
while [ $# -gt 0 ]; do
    case $1 in
    --sanitize) sanitize=1 ;;
    --only) [ $# -gt 1 ] || { usage >&2; exit 2; }; only=$2; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) folder=$1 ;;
    esac
    shift
done
seconds=${QB_TEST_SECONDS:-300}
tools="memcheck racecheck initcheck synccheck"
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT

number() { # number WORD: the count of cmocka's summary line, 0 without one
    sed -n "s/^\[  $1 *\] \([0-9]*\) test.*/\1/p" "$log" | tail -n 1 | grep . || echo 0
}

report() { # report STATE NAME NOTE
    printf '%-7s %-44s %s\n' "$1" "$2" "$3"
}

show_log() {
    tail -n 40 "$log" | sed 's/^/    | /'
}

run_program() {
    name=$(basename "$1")
    timeout "$seconds" "$1" >"$log" 2>&1 </dev/null
    code=$?
    p=$(number PASSED) f=$(number FAILED) s=$(number SKIPPED)
    # a program that died before its summary, or that has none and is no cmocka test
    if [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$code" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then p=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    state=ok
    [ "$f" -eq 0 ] || state=FAILED
    report $state "$name" "$p passed, $f failed, $s skipped"
    [ "$f" -eq 0 ] || show_log
    sed -n 's/^skipped: /        skipped: /p' "$log" | sort -u | head -n 8
}

# Errors of calls are the tests' own matter: some provoke them. The kernels of cuBLASLt are not ours to
# check, and racecheck finds fault with them.
run_tool() { # run_tool TOOL PROGRAM
    QB_TEST_SMALL=1 QB_DISABLE="${QB_DISABLE:+$QB_DISABLE,}gemm_float/cublaslt,gemm_s8/cublaslt" \
        timeout $((4 * seconds)) "$sanitizer" --tool "$1" --error-exitcode 86 \
        --report-api-errors no --print-limit 20 "$2" >"$log.$1" 2>&1 </dev/null
    echo $? >"$log.$1.code"
}

report_tool() { # report_tool TOOL PROGRAM
    code=$(cat "$log.$1.code")
    name="$(basename "$2") ($1)"
    summary=$(grep -E '(ERROR|RACECHECK) SUMMARY' "$log.$1" | sed 's/^=* *//' | tr '\n' ';')
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
        report ok "$name" "$summary"
    else
        failed=$((failed + 1))
        report FAILED "$name" "exit $code; $summary"
        grep -E -A 12 '^=+ (Error|Invalid|Uninit|Warning|Race|Leaked|Program|Barrier)' "$log.$1" |
            head -n 40 | sed 's/^/    | /'
        grep -E '\[ +FAILED +\]|error:|\[   LINE' "$log.$1" | head -n 10 | sed 's/^/    | /'
    fi
    rm -f "$log.$1" "$log.$1.code"
}

sanitize_program() { # the tools beside each other: they are bound by the processor
    for tool in $tools; do run_tool "$tool" "$1" & done
    wait
    for tool in $tools; do report_tool "$tool" "$1"; done
}

find_sanitizer() {
    for sanitizer in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer \
        /opt/cuda/bin/compute-sanitizer; do
        command -v "$sanitizer" >/dev/null 2>&1 && return 0
    done
    return 1
}

programs=
cd "$folder" || exit 2
for program in ./test_cuda_*; do
    # shellcheck disable=SC2254
    case ${program##*/} in $only) [ ! -x "$program" ] || programs="$programs $program" ;; esac
done
if [ -z "$programs" ]; then
    echo "test_cuda: programs test_cuda_* in $folder: found none, expected those of make test-cuda" >&2
    exit 2
fi
for program in $programs; do run_program "$program"; done
if [ -n "$sanitize" ]; then
    if [ "$passed" -eq 0 ] && [ "$failed" -eq 0 ]; then
        echo "        skipped: compute-sanitizer, since no test ran"
        skipped=$((skipped + 1))
    elif find_sanitizer; then
        for program in $programs; do sanitize_program "$program"; done
    else
        echo "        skipped: compute-sanitizer is not installed"
        skipped=$((skipped + 1))
    fi
fi
[ "$passed" -ne 0 ] || [ "$failed" -ne 0 ] || echo "nothing ran: every test needs a GPU"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
