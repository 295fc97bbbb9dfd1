# UNTESTED as an image: its commands were run one after another in a bare Debian 12 (2026-11-22), but no
# engine built or ran it.
#
#     docker build -t qbench .
#     docker run --rm -v "$PWD:/data" qbench --scheme all --no-speed /data/model.bin
#
# The processor's engine only. For the CUDA engine build on an image with CUDA 12.4 or newer
# (nvidia/cuda:13.0.0-devel-debian12 or the like), leave -DQB_CUDA=OFF out, and run with --gpus all.
FROM debian:12 AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc g++ make cmake git ca-certificates pkg-config python3 \
        zlib1g-dev liblzma-dev libjansson-dev libpcre2-dev libssl-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
RUN cmake --preset package -DQB_CUDA=OFF \
    && cmake --build build-package --parallel "$(nproc)" \
    && cmake --install build-package --prefix /opt/qbench

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
        libjansson4 libpcre2-8-0 liblzma5 zlib1g libssl3 libmicrohttpd12 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/qbench /opt/qbench
ENV PATH=/opt/qbench/bin:$PATH
WORKDIR /data
ENTRYPOINT ["qbench"]
