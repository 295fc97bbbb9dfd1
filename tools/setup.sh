#!/bin/sh
# Finds what building (and testing) needs and installs what is missing, on Debian and Ubuntu.
set -eu

usage() {
    cat <<EOT
usage: tools/setup.sh [build|test]

Looks for the compiler, tools and libraries that building qbench needs (build,
the default) or that its tests need too (test). Where something is missing, its
Debian package is installed with apt-get: as root, or by sudo where that asks no
password. Otherwise the one line to run is printed. Quick where nothing lacks.

exit status: 0 all is there, 2 something is missing
EOT
}

missing=
need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
need_program() { need "$2" command -v "$1"; }
need_library() { need "$2" pkg-config --exists "$1"; }

has_pip() { python3 -m pip --version; }
has_fuzzer() { # clang's libFuzzer comes in a package of clang's own version
    folder=$(clang -print-resource-dir) && [ -n "$(find "$folder/" -name 'libclang_rt.fuzzer*.a')" ]
}
clang_major() {
    if command -v clang >/dev/null; then
        clang -dumpversion
    else # what the package clang would bring
        apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\).*/\1/p'
    fi | sed '1s/\..*//;1q'
}

look() {
    missing=
    need_program gcc gcc
    need_program g++ g++
    need_program make make
    need_program cmake cmake
    need_program git git
    need_program pkg-config pkg-config
    need_program python3 python3
    need python3-pip has_pip
    need_library zlib zlib1g-dev
    need_library liblzma liblzma-dev
    need_library jansson libjansson-dev
    need_library libpcre2-8 libpcre2-dev
    need_library libcrypto libssl-dev
    [ "$what" = test ] || return 0
    need_library cmocka libcmocka-dev
    need_library benchmark libbenchmark-dev
    need_library mpi libopenmpi-dev
    need_library libmicrohttpd libmicrohttpd-dev
    need_program mpirun openmpi-bin
    need_program ninja ninja-build
    need_program clang clang
    need libclang-rt has_fuzzer
}

install_missing() {
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo -n"
        sudo -n true >/dev/null 2>&1 || return 1
    fi
    $as_root apt-get update -qq
    name_clang_package
    echo "setup: installing with apt-get:$missing"
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

name_clang_package() {
    major=$(clang_major)
    missing=$(echo "$missing" | sed "s/libclang-rt\$/libclang-rt-${major:-dev}${major:+-dev}/")
}

case ${1:-build} in
build | test) what=${1:-build} ;;
-h | --help) usage; exit 0 ;;
*) usage >&2; exit 2 ;;
esac

look
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "setup: missing here (names of the Debian packages):$missing" >&2
    exit 2
fi
if ! install_missing; then
    name_clang_package
    echo "setup: some packages are missing; run this line, then make again:" >&2
    echo "    sudo apt-get install --no-install-recommends$missing" >&2
    exit 2
fi
look
if [ -n "$missing" ]; then
    echo "setup: still missing after the installation:$missing" >&2
    exit 2
fi
