#!/bin/bash
# Runs the GPU suite; needs only the built programs, so that their folder can be carried.
set -u

usage() {
    cat <<EOT
usage: tools/test_cuda.sh [--sanitize | --tools LIST] [--only PATTERN] [--jobs N] [--budget S]
                          [--logs LOGS] [FOLDER]

Runs the programs test_cuda_* of FOLDER (default: build/tests/cuda of this
checkout; build them with \`make test-cuda\`). Without a GPU each test is skipped
with the reason. The last line is \`N passed, N failed, N skipped\`.

--sanitize      runs them again under compute-sanitizer's memcheck, racecheck,
                initcheck and synccheck, at reduced sizes (QB_TEST_SMALL=1) and
                without cuBLASLt, whose kernels are not ours to check; there each
                test of a program is a process of its own, on the visible GPU with
                the fewest at the time, and counts as one
--tools LIST    under these only, of plain,memcheck,racecheck,initcheck,synccheck
--only PATTERN  only programs whose name matches the shell pattern
--jobs N        processes at a time, on all GPUs together (default 4)
--budget S      seconds after which nothing more is started; what was running
                is ended (default: none)
--logs LOGS     keeps what the programs and the tools say in this folder

A program may take QB_TEST_SECONDS (default 300), a test under a tool four times that.

exit status: 0 nothing failed, 1 something did, 2 usage or nothing to run
EOT
}

die() {
    echo "test_cuda: $1" >&2
    exit 2
}

tools=plain only='*' jobs=4 budget=100000 logs='' folder=$(dirname -- "$0")/../build/tests/cuda
while [ $# -gt 0 ]; do
    case $1 in
    --sanitize) tools=plain,memcheck,racecheck,initcheck,synccheck ;;
    --tools | --only | --jobs | --budget | --logs)
        [ $# -gt 1 ] || { usage >&2; exit 2; }
        declare "${1#--}=$2"
        shift
        ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) folder=$1 ;;
    esac
    shift
done
seconds=${QB_TEST_SECONDS:-300}
passed=0 failed=0 skipped=0 n_hidden=0
if [ -n "$logs" ]; then
    mkdir -p "$logs" || die "folder $logs: cannot be made"
    logs=$(cd "$logs" && pwd)
else
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
fi

find_sanitizer() {
    for sanitizer in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer \
        /opt/cuda/bin/compute-sanitizer; do
        command -v "$sanitizer" >/dev/null 2>&1 || continue
        sanitizer_help=$("$sanitizer" --help 2>&1)
        return 0
    done
    return 1
}

# Options that newer versions have. All blocks run the same code, and a report's place is in the
# code, so racecheck, which is a hundred times slower than the others, watches the first cluster, and
# no kernel of cuBLASLt's. Its processes slow each other down out of proportion once their threads
# outnumber the cores.
racecheck_options() {
    local workers=$(($(nproc) / jobs / 2))
    echo --racecheck-num-workers $((workers < 1 ? 1 : workers > 4 ? 4 : workers))
    case $sanitizer_help in *--racecheck-filter-cluster-id*) echo --racecheck-filter-cluster-id 0 ;; esac
    case $sanitizer_help in *--racecheck-fence-proxy-async*) echo --racecheck-fence-proxy-async no ;; esac
    case $sanitizer_help in *--kernel-name-exclude*)
        echo --kernel-name-exclude kns=cublas,kns=cutlass,kns=nvjet,kns=sgemm,kns=xmma
        ;;
    esac
}

# A unit is a program, or one of its tests as PROGRAM.TEST.
run_under() { # run_under TOOL UNIT SECONDS; TOOL is plain or one of compute-sanitizer's
    local options=() program=${2%%.*}
    [ "$program" = "$2" ] || export QB_TEST_ONLY=${2#*.}
    case $1 in
    plain)
        timeout -k 2 "$3" "./$program"
        return
        ;;
    memcheck) options=(--report-api-errors no) ;; # the tests' own matter: some provoke them
    racecheck) read -ra options <<<"$(racecheck_options | tr '\n' ' ')" ;;
    initcheck) # the tests copy whole buffers back, with what no kernel has to write
        export QB_TEST_BARE=1
        options=(--check-api-memory-access no)
        ;;
    esac
    QB_TEST_SMALL=1 QB_DISABLE="${QB_DISABLE:+$QB_DISABLE,}gemm_float/cublaslt,gemm_s8/cublaslt" \
        timeout -k 2 "$3" "$sanitizer" --tool "$1" --error-exitcode 86 --print-limit 20 \
        --max-connections 100 ${options[@]+"${options[@]}"} "./$program"
}

run_job() { # run_job TOOL UNIT GPU: leaves a log, then the exit code; GPU `all`: as they are visible
    local start=$SECONDS most=$seconds left=$((budget - SECONDS)) code
    [ "$1" = plain ] || most=$((4 * seconds))
    [ "$most" -lt $left ] || most=$left
    [ "$3" = all ] || export CUDA_VISIBLE_DEVICES=$3
    code=none
    if [ $left -ge 2 ]; then
        run_under "$1" "$2" "$most" >"$logs/$2.$1" 2>&1 </dev/null
        code=$?
        # ended by the budget, which says nothing about the unit
        if [ $code -eq 124 ] && [ "$most" -eq $left ]; then code=none; fi
    fi
    echo "$code $((SECONDS - start))" >"$logs/$2.$1.tmp"
    mv "$logs/$2.$1.tmp" "$logs/$2.$1.code"
}

count() { # count WORD LOG: the number of cmocka's summary line, 0 without one
    sed -n "s/^\[  $1 *\] \([0-9]*\) test.*/\1/p" "$2" | tail -n 1 | grep . || echo 0
}

say() { # say STATE NAME NOTE
    printf '%-7s %-38s %s\n' "$1" "$2" "$3"
}

report_plain() { # report_plain PROGRAM LOG CODE SECONDS
    local p f s state=ok
    p=$(count PASSED "$2") f=$(count FAILED "$2") s=$(count SKIPPED "$2")
    # a program that died before its summary, or that has none and is no cmocka test
    if [ "$3" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$3" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then p=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    [ "$f" -eq 0 ] || state=FAILED
    [ "$3" -ne 124 ] || state=late
    say $state "$1" "$p passed, $f failed, $s skipped; $4 s"
    [ "$f" -eq 0 ] || tail -n 40 "$2" | sed 's/^/    | /'
    sed -n 's/^skipped: /        skipped: /p' "$2" | sort -u | head -n 8
}

report_tool() { # report_tool UNIT TOOL LOG CODE SECONDS
    local state=ok summary
    if grep -aq 'terminated before first instrumented API call' "$3"; then
        skipped=$((skipped + 1))
        say skipped "$1 $2" "it makes no CUDA call"
        return
    fi
    summary=$(grep -aE '(ERROR|RACECHECK) SUMMARY' "$3" | sed 's/^=* *//' | tr '\n' ';')
    if [ "$4" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) state=FAILED
        [ "$4" -ne 124 ] || state=late
    fi
    say $state "$1 $2" "$summary $5 s"
    [ "$4" -ne 0 ] || return
    grep -aE -A 12 '^=+ (Error|Invalid|Uninit|Warning|Race|Leaked|Program|Barrier)' "$3" |
        head -n 40 | sed 's/^/    | /'
    grep -aE '\[ +FAILED +\]|error:|\[   LINE' "$3" | head -n 10 | sed 's/^/    | /'
}

report() { # report TOOL UNIT, which has ended
    local code spent
    read -r code spent <"$logs/$2.$1.code"
    if [ "$code" = none ]; then
        skipped=$((skipped + 1))
        say skipped "$2 ${1#plain}" "no time left"
    elif [ "$1" = plain ]; then
        report_plain "$2" "$logs/$2.$1" "$code" "$spent"
    else
        report_tool "$2" "$1" "$logs/$2.$1" "$code" "$spent"
    fi
}

report_ended() { # those of the jobs in `running` that have ended, and forgets them
    local job tool unit gpu left=()
    for job in ${running[@]+"${running[@]}"}; do
        read -r tool unit gpu <<<"$job"
        if [ -e "$logs/$unit.$tool.code" ]; then report "$tool" "$unit"; else left+=("$job"); fi
    done
    running=(${left[@]+"${left[@]}"})
}

find_gpus() { # what CUDA_VISIBLE_DEVICES may say to show one GPU; `all` where that is not known
    local visible=${CUDA_VISIBLE_DEVICES-}
    [ -n "${CUDA_VISIBLE_DEVICES+set}" ] ||
        visible=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | tr '\n' ',')
    IFS=, read -ra gpus <<<"$visible"
    [ ${#gpus[@]} -gt 0 ] || gpus=(all)
}

idlest_gpu() { # the one with the fewest of the jobs in `running`
    local gpu job n fewest=$((jobs + 1)) found=all
    for gpu in "${gpus[@]}"; do
        n=0
        for job in ${running[@]+"${running[@]}"}; do [ "${job##* }" != "$gpu" ] || n=$((n + 1)); done
        [ "$n" -ge $fewest ] || { fewest=$n found=$gpu; }
    done
    echo "$found"
}

units_of() { # units_of PROGRAM: its tests, where they are several
    local tests
    mapfile -t tests < <(QB_TEST_LIST=1 timeout 20 "./$1" 2>/dev/null </dev/null | grep -x '[A-Za-z0-9_]*')
    if [ ${#tests[@]} -gt 1 ]; then echo "${tests[@]/#/$1.}"; else echo "$1"; fi
}

run_units() { # run_units UNITS TOOL...: every unit under each, reported as they end
    local tool unit gpu units=$1 running=()
    shift
    for unit in $units; do
        for tool in "$@"; do
            while [ ${#running[@]} -ge "$jobs" ]; do
                wait -n
                report_ended
            done
            rm -f "$logs/$unit.$tool.code"
            gpu=$(idlest_gpu)
            run_job "$tool" "$unit" "$gpu" &
            running+=("$tool $unit $gpu")
        done
    done
    while [ ${#running[@]} -gt 0 ]; do
        wait -n
        report_ended
    done
}

run_plain() { # programs, which see all GPUs
    local gpus=(all)
    run_units "${programs[*]}" plain
}

run_tools() { # run_tools TOOL...: tests, each on one GPU
    local gpus program units=''
    find_gpus
    for program in "${programs[@]}"; do units+=" $(units_of "$program")"; done
    run_units "$units" "$@"
}

cd "$folder" 2>/dev/null || die "folder $folder: found none, expected that of make test-cuda"
programs=() # the longest first
for program in test_cuda_{train,decode,engine,quality,attention}{,_*} test_cuda_*; do
    # shellcheck disable=SC2254
    case " ${programs[*]-} " in *" $program "*) continue ;; esac
    # shellcheck disable=SC2254
    case $program in $only) [ ! -x "$program" ] || programs+=("$program") ;; esac
done
[ ${#programs[@]} -gt 0 ] ||
    die "programs test_cuda_* in $folder: found none, expected those of make test-cuda"
IFS=, read -ra tools <<<"$tools"
watched=()
for tool in "${tools[@]}"; do
    case $tool in
    plain) run_plain ;;
    memcheck | racecheck | initcheck | synccheck) watched+=("$tool") ;;
    *) die "tool $tool: expected plain, memcheck, racecheck, initcheck or synccheck" ;;
    esac
done
if [ ${#watched[@]} -gt 0 ]; then
    if [ "${tools[0]}" = plain ] && [ $((passed + failed)) -eq 0 ]; then
        n_hidden=1
        echo "        skipped: compute-sanitizer, since no test ran"
    elif find_sanitizer; then
        run_tools "${watched[@]}"
    else
        n_hidden=1
        echo "        skipped: compute-sanitizer is not installed"
    fi
fi
skipped=$((skipped + n_hidden))
[ $((passed + failed)) -ne 0 ] || echo "nothing ran: every test needs a GPU"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
