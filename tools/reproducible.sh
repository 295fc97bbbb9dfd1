#!/bin/sh
# Builds the packages of HEAD twice, in folders of other names, and compares their bytes.
# Arguments go to cmake (-DQB_CUDA=OFF, -DQB_CUDA_ARCHS=90a). JOBS=n.
set -eu
cd "$(dirname -- "$0")/.."
holder=$(mktemp -d)
trap 'rm -rf "$holder"' EXIT
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CCACHE_DISABLE=1
for name in one another-name; do
    git clone -q . "$holder/$name/qbench"
    (
        cd "$holder/$name/qbench"
        cmake --preset package "$@"
        cmake --build build-package --parallel "${JOBS:-$(nproc)}"
        cd build-package && cpack -B packages
    ) >"$holder/$name.log" 2>&1 || { tail -20 "$holder/$name.log"; exit 1; }
done
say_what_differs() { # of the files in the packages
    for name in one another-name; do
        mkdir "$holder/$name/unpacked"
        tar -xzf "$holder/$name/qbench/build-package/packages/"*.tar.gz -C "$holder/$name/unpacked"
    done
    diff -rq "$holder/one/unpacked" "$holder/another-name/unpacked" | sed "s|$holder/||g" >&2
}
cd "$holder/one/qbench/build-package/packages"
for file in *.tar.gz *.deb; do
    if cmp "$file" "$holder/another-name/qbench/build-package/packages/$file"; then
        sha256sum "$file"
    else
        say_what_differs
        exit 1
    fi
done
if grep -rqF "$holder" ../qbench ../lib; then
    echo "the folder of the build is in what was built" >&2
    exit 1
fi
echo "same bytes twice"
