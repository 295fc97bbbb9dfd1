# The commands of a checkout. Each does its own set-up; CMake does the building (CMakePresets.json).
#
#   make              build/qbench, with the CUDA engine where nvcc is found
#   make demo         the main job on the pair of models in share/models, under a minute
#   make test         every test; the last line is `N passed, N failed, N skipped`
#   make test-cuda    the GPU suite, where there is a GPU; SANITIZE=1: under compute-sanitizer too
#
#   make package      a .tar.gz and a .deb of it, in build-package/packages
#
# PRESET=cuda insists on CUDA, PRESET=cpu (in build-cpu) leaves it out, PRESET=carry (build-carry)
# links all libraries but libc statically. JOBS=n, FUZZ_SECONDS=n (a fuzz target), PREFIX and DESTDIR
# (install).

MAKEFLAGS += --no-print-directory

PRESET ?= default
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 1
PREFIX ?= /usr/local
BUILD := $(if $(filter default cuda,$(PRESET)),build,build-$(PRESET))
# What the cache of a folder must say, else it is set up (anew): `make test` alone leaves CUDA out.
SAID_default := QB_CUDA:BOOL=ON
SAID_cuda := QB_REQUIRE_CUDA:BOOL=ON
SAID := $(or $(SAID_$(PRESET)),CMAKE_BUILD_TYPE)

all: TARGET =
program: TARGET = --target qbench
all program:
	@tools/setup.sh build
	@grep -qs '^$(SAID)' $(BUILD)/CMakeCache.txt || cmake --preset $(PRESET)
	cmake --build $(BUILD) --parallel $(JOBS) $(TARGET)

demo: program
	tools/demo.py --qbench $(BUILD)/qbench

test:
	@tools/setup.sh test
	tools/run_tests.py --fuzz-seconds $(FUZZ_SECONDS)

test-cuda:
	@tools/setup.sh test
	@$(MAKE) all PRESET=cuda
	tools/test_cuda.sh $(if $(SANITIZE),--sanitize)

# Only the fuzz targets: make fuzz FUZZ_SECONDS=600
fuzz:
	@tools/setup.sh test
	tools/run_tests.py --only fuzz --fuzz-seconds $(FUZZ_SECONDS)

# Line coverage of core, kernels, quant and infer.
coverage:
	@tools/setup.sh test
	tools/coverage.py

fetch-smollm2: program
	tools/fetch_smollm2.sh

format:
	git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

install: all
	cmake --install $(BUILD) --prefix $(PREFIX)

# build-package/packages/*.tar.gz and *.deb; the same source, compiler and libraries give the same bytes.
package:
	@$(MAKE) all PRESET=package
	cd build-package && SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} cpack -B packages

# Packages built twice, in folders of other names, have the same bytes; with CUDA where nvcc is, which
# takes its time: CMAKE_OPTIONS=-DQB_CUDA=OFF leaves it out.
reproducible:
	@tools/setup.sh build
	JOBS=$(JOBS) tools/reproducible.sh $(CMAKE_OPTIONS)

clean:
	rm -rf build build-*

.PHONY: all program demo test test-cuda fuzz coverage fetch-smollm2 format install package reproducible clean
