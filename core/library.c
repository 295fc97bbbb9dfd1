/* core/library.c - see library.h. */
#include "core/library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void *open_in(const char *folder, const char *name)
{
    char path[1024];
    int n = snprintf(path, sizeof path, "%s%s%s", folder, *folder ? "/" : "", name);
    return n > 0 && (size_t)n < sizeof path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_first(const char *const *folders, size_t n_folders, const char *const *names,
                        size_t n_names)
{
    for (size_t i = 0; i < n_names; i++)
        for (size_t j = 0; j < n_folders; j++) {
            void *library = folders[j] ? open_in(folders[j], names[i]) : NULL;
            if (library) return library;
        }
    return NULL;
}

const char *qb_library_load(const char *const *folders, size_t n_folders, const char *const *names,
                            size_t n_names, const qb_library_entry *entries, size_t n_entries)
{
    void *library = open_first(folders, n_folders, names, n_names);
    if (!library) return names[0];
    for (size_t i = 0; i < n_entries; i++) {
        void *function = dlsym(library, entries[i].name);
        if (!function) return entries[i].name;
        memcpy(entries[i].slot, &function, sizeof function);
    }
    return NULL;
}
