#!/usr/bin/env python3
"""Launcher of nvcc whose objects do not depend on the folder of the source: nvcc_placeless.py SOURCE
NVCC ARGUMENT... nvcc names kernels of a file alone by a hash of their file's absolute path, which no option
of it changes. So it says what it would run (--dryrun), and that is run here with the path as it is
within SOURCE."""
import os
import re
import subprocess
import sys


def write_dependencies(command):
    """By a run of its own, since a dry run cannot; the command without what asked for them."""
    at = command.index("-MF")
    file, rest = command[at + 1], command[:at] + command[at + 2:]
    rest.remove("-MD")
    done = subprocess.run([*("-M" if word == "-c" else word for word in rest[:-2]), "-MF", file])
    place = rest.index("-MT")
    return done.returncode, rest[:place] + rest[place + 2:]


def main():
    source, command = os.path.realpath(sys.argv[1]), sys.argv[2:]
    if "-c" not in command:  # questions of CMake, links
        return subprocess.run(command).returncode
    if "-MD" in command:
        assert command[-2] == "-o", "as CMake writes it: the object last"
        code, command = write_dependencies(command)
        if code:
            return code
    asked = subprocess.run([command[0], "--dryrun", *command[1:]], capture_output=True, text=True)
    if asked.returncode:
        sys.stderr.write(asked.stdout + asked.stderr)
        return asked.returncode
    environment = dict(os.environ)
    for line in asked.stderr.splitlines():
        if not line.startswith("#$ "):
            continue
        step = line[3:]
        variable = re.match(r"([A-Za-z_]\w*)=(.*)$", step)
        if variable:
            environment[variable[1]] = variable[2].strip()
            continue
        step = step.replace(f'--orig_src_path_name "{source}/', '--orig_src_path_name "')
        done = subprocess.run(["sh", "-c", step], env=environment)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
