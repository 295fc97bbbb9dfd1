# cmake/version.cmake - what the program says about itself, looked up at every build (run with cmake -P),
# since records name the commit that made them. The header is touched only when it changes.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE QB_GIT_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT QB_GIT_COMMIT)
  set(QB_GIT_COMMIT unknown)
endif()
configure_file(${SOURCE}/cmake/version.h.in ${OUT} @ONLY)
