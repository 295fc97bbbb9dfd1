# The commands of a checkout. Each does its own set-up; CMake does the building (CMakePresets.json).
#
#   make              build/qbench
#   make demo         the main job on a real model, under a minute
#   make test         every test; the last line is `N passed, N failed, N skipped`
#
# PRESET=cpu|cuda, JOBS=n, FUZZ_SECONDS=n (a fuzz target), PREFIX and DESTDIR (install).

MAKEFLAGS += --no-print-directory

PRESET ?= cpu
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 5
PREFIX ?= /usr/local
BUILD := $(if $(filter cpu,$(PRESET)),build,build-$(PRESET))

all:
	@tools/setup.sh build
	@test -e $(BUILD)/CMakeCache.txt || cmake --preset $(PRESET)
	cmake --build $(BUILD) --parallel $(JOBS)

demo: all
	tools/demo.sh

test:
	@tools/setup.sh test
	tools/run_tests.py --fuzz-seconds $(FUZZ_SECONDS)

# Only the fuzz targets: make fuzz FUZZ_SECONDS=600
fuzz:
	@tools/setup.sh test
	tools/run_tests.py --only fuzz --fuzz-seconds $(FUZZ_SECONDS)

# Line coverage of core, kernels, quant and infer.
coverage:
	@tools/setup.sh test
	tools/coverage.py

fetch-smollm2: all
	tools/fetch_smollm2.sh

format:
	git ls-files '*.c' '*.h' '*.cc' | xargs clang-format -i

install: all
	cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf build build-*

.PHONY: all demo test fuzz coverage fetch-smollm2 format install clean
