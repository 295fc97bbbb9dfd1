# cmake/library.cmake - libqbench for other programs: shared and static, found by pkg-config and CMake.
# The libraries it needs are always shared: those of other programs may be too, and archives are
# seldom made for shared libraries.
set(QB_OBJECTS $<TARGET_OBJECTS:qbench_cli> $<TARGET_OBJECTS:libqbench>)
add_library(qbench_shared SHARED ${QB_OBJECTS})
target_link_libraries(qbench_shared PRIVATE ${QB_SHARED_LIBRARIES} Threads::Threads m ${CMAKE_DL_LIBS}
                      $<$<BOOL:${QB_WITH_CUDA}>:CUDA::cudart_static>)
target_link_directories(qbench_shared PRIVATE ${DEPS_LIBRARY_DIRS})
target_link_options(qbench_shared PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/api/qbench.map
                    -Wl,--no-undefined)
if(QB_MPI AND MPI_C_FOUND)
  target_link_libraries(qbench_shared PRIVATE MPI::MPI_C)
endif()
set_target_properties(qbench_shared PROPERTIES OUTPUT_NAME qbench VERSION ${PROJECT_VERSION}
                      SOVERSION ${PROJECT_VERSION_MAJOR} LINKER_LANGUAGE C
                      LINK_DEPENDS ${CMAKE_SOURCE_DIR}/api/qbench.map
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
add_library(qbench_static STATIC ${QB_OBJECTS})
set_target_properties(qbench_static PROPERTIES OUTPUT_NAME qbench LINKER_LANGUAGE C
                      ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
if(QB_WITH_CUDA) # of C++ the .cu files need a few functions
  set_target_properties(qbench_shared PROPERTIES LINKER_LANGUAGE CXX)
  target_link_options(qbench_shared PRIVATE -static-libgcc -static-libstdc++)
endif()

# What a program linked with libqbench.a links beside it.
set(QB_STATIC_LINKS -ljansson -lpcre2-8 -llzma -lz -lcrypto -lpthread -lm -ldl)
if(QB_WITH_CUDA)
  list(APPEND QB_STATIC_LINKS -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -lstdc++)
endif()
if(QB_MPI AND MPI_C_FOUND)
  list(APPEND QB_STATIC_LINKS ${MPI_C_LIBRARIES})
endif()
list(JOIN QB_STATIC_LINKS " " QB_STATIC_LINKS_LINE)
set(QB_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/qbench)
file(RELATIVE_PATH QB_PREFIX_FROM_PC /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
file(RELATIVE_PATH QB_PREFIX_FROM_CMAKE /${QB_PACKAGE_DIR} /)
foreach(relative PC CMAKE)
  string(REGEX REPLACE "/$" "" QB_PREFIX_FROM_${relative} ${QB_PREFIX_FROM_${relative}})
endforeach()
configure_file(cmake/qbench.pc.in generated/qbench.pc @ONLY)
configure_file(cmake/qbench-config.cmake.in generated/qbench-config.cmake @ONLY)
include(CMakePackageConfigHelpers)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/generated/qbench-config-version.cmake
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)

install(TARGETS qbench_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS qbench_static ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/qbench DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${CMAKE_BINARY_DIR}/generated/qbench.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${CMAKE_BINARY_DIR}/generated/qbench-config.cmake
              ${CMAKE_BINARY_DIR}/generated/qbench-config-version.cmake
        DESTINATION ${QB_PACKAGE_DIR})
