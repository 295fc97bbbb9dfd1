# cmake/install.cmake - what `cmake --install` puts where, and packages of it.
# The installed tree can be moved: everything in it finds its neighbours by their place.
include(GNUInstallDirs)

# What the program knows of itself: manual page, completions.
install(TARGETS qbench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(CODE "
  function(say file)
    get_filename_component(folder \"\${file}\" DIRECTORY)
    file(MAKE_DIRECTORY \"\${folder}\")
    execute_process(COMMAND $<TARGET_FILE:qbench> help \${ARGN} OUTPUT_FILE \"\${file}\"
                    COMMAND_ERROR_IS_FATAL ANY)
  endfunction()
  set(root \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}\")
  say(\"\${root}/${CMAKE_INSTALL_MANDIR}/man1/qbench.1\" --man)
  say(\"\${root}/${CMAKE_INSTALL_DATADIR}/bash-completion/completions/qbench\" --completion bash)
  say(\"\${root}/${CMAKE_INSTALL_DATADIR}/zsh/site-functions/_qbench\" --completion zsh)
  say(\"\${root}/${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d/qbench.fish\" --completion fish)")

# Data and words for people: the shipped pair of models, their baseline, examples, licence.
set(QB_DATA ${CMAKE_INSTALL_DATADIR}/qbench)
install(DIRECTORY share/models share/baselines share/examples share/text DESTINATION ${QB_DATA}
        PATTERN "*.metrics.jsonl" EXCLUDE)
install(FILES docs/result.schema.json docs/profile.schema.json docs/analysis.schema.json
        DESTINATION ${QB_DATA})
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(QB_LIBRARY AND NOT QB_SANITIZE)
  include(cmake/library.cmake)
endif()

# ---- packages: cpack, or make package ----
set(CPACK_GENERATOR TGZ DEB)
set(CPACK_PACKAGE_CONTACT "the qbench project")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY
    "what a quantisation scheme costs a language model, and what it brings")
set(CPACK_RESOURCE_FILE_LICENSE ${CMAKE_SOURCE_DIR}/LICENSE)
string(TOLOWER ${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR} QB_SYSTEM)
set(CPACK_PACKAGE_FILE_NAME qbench-${PROJECT_VERSION}-${QB_SYSTEM})
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
find_program(QB_SHLIBDEPS dpkg-shlibdeps)
if(QB_SHLIBDEPS) # the packages of the libraries, else the user sees to them
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
endif()
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON) # ldconfig is run
# Found when the program runs, where dpkg-shlibdeps cannot see it: train --serve.
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "libmicrohttpd12 | libmicrohttpd12t64")
include(CPack)
