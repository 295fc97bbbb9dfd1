"""What the comparisons on one GPU share (gpu.py, train.py): sides that run one after the other and
may be missing, the machine and its clocks under load.

A side that is missing or fails is left out with a message and goes to record["refused"].
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import peers

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
import runs  # noqa: E402

QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


def attempt(command, ok=(0,), env=None):
    """(standard output, None) or (None, why not)."""
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, **(env or {})}, check=False)
    except OSError as error:
        return None, str(error)
    if done.returncode in ok:
        return done.stdout, None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return None, "%s: exit status %d: %s" % (os.path.basename(str(command[0])), done.returncode,
                                             last[:300])


def leave_out(record, why, **what):
    peers.say("%s: left out: %s" % (", ".join(map(str, what.values())), why))
    record["refused"].append({**what, "why": why})


def beside(name):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def machine():
    found = runs.smi("name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total", gpu=0)
    gpu = dict(zip(("name", "driver", "max_sm_mhz", "max_mem_mhz", "power_limit_w", "memory_mib"),
                   found[0])) if found else None
    return {"gpu": gpu, "cpu": peers.cpu_model(), "n_cpus": os.cpu_count()}


class Clocks:
    """Reads clocks, power and temperature twice a second while the programs run."""

    def __init__(self):
        self.lines = []
        try:
            self.process = subprocess.Popen(
                ["nvidia-smi", "-i", "0", "--query-gpu=" + QUERY, "--format=csv,noheader,nounits",
                 "-lms", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self.process = None
            return
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def stop(self):
        """Medians and extremes of the readings under load: more than half of the most power."""
        if not self.process:
            return None
        self.process.kill()
        self.process.wait()
        return clock_summary(self.lines)


def clock_summary(lines):
    rows = []
    for line in list(lines):
        try:
            rows.append([float(word) for word in line.split(",")])
        except ValueError:
            continue  # "[N/A]", or a line cut short
    rows = [r for r in rows if len(r) == 4]
    if not rows:
        return None
    most = max(r[2] for r in rows)
    loaded = list(zip(*[r for r in rows if r[2] > most / 2]))
    names = "sm_mhz", "mem_mhz", "power_w", "temperature_c"
    return {name: peers.median_and_range(list(column)) for name, column in zip(names, loaded)}


def run_torch(command, record, note):
    """Lines of JSON are taken as they come, so that a run that is ended keeps what it has: the
    versions, and figures, each handed to note(record, figure)."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   text=True)
    except OSError as error:
        leave_out(record, str(error), who="torch")
        return
    try:
        for line in process.stdout:
            figure = json.loads(line)
            if "versions" in figure:
                record["versions"].update(figure["versions"])
            else:
                note(record, figure)
        if process.wait():
            leave_out(record, "exit status %d" % process.returncode, who="torch")
    finally:
        process.kill()
        process.wait()


class Stopped(Exception):
    """The run is to end now; what was measured is recorded."""


def stop(number, frame):
    raise Stopped


def check_sides(parser, only, sides):
    unknown = [side for side in only.split(",") if side not in sides]
    if unknown:
        parser.error("--only: unknown side '%s', expected %s" % (unknown[0], ", ".join(sides)))


def run_sides(args, record, sides):
    """Runs sides[name](args, record) for the names of args.only; returns the machine."""
    here = machine()
    clocks = Clocks()
    signal.signal(signal.SIGTERM, stop)
    try:
        for side in args.only.split(","):
            sides[side](args, record)
    except Stopped:
        leave_out(record, "the run was ended", who=side)
    here["clocks_under_load"] = clocks.stop()
    return here
