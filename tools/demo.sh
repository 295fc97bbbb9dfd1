#!/bin/sh
# make demo: the main job on a real model, or on a random one where none can be fetched.
set -eu
cd "$(dirname -- "$0")/.."

model=models/smollm2.bin
if tools/fetch_smollm2.sh && [ -e "$model" ]; then
    echo "demo: SmolLM2-135M-Instruct (Apache-2.0), the built-in text" >&2
else
    model=models/random-gpt2-60m.bin
    mkdir -p models
    [ -e "$model" ] || build/qbench convert --random gpt2-60m "$model"
    echo "demo: SmolLM2 could not be fetched: this is a RANDOM model of GPT2's shape. Its speeds" >&2
    echo "demo: mean something, its perplexities do not." >&2
fi
set -- build/qbench --scheme fine,moderate,coarse,zeropoint4 --context 256 --max-tokens 1028 \
    --speed-context 256 "$model"
echo "demo: $*" >&2
exec "$@"
