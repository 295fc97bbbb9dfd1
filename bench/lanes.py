"""Runs that go on at the same time (paper_runs.py, bb_runs.py, pair.py). A lane is a GPU, or a part of
one, with its share of the machine's processors; it takes the next run when it is through with one. Lanes
are threads, and what they run are processes: of one lane they see one GPU (CUDA_VISIBLE_DEVICES) and the
lane's processors (affinity, which they inherit), and say what they say line by line behind the name of the
run. Standard library only."""
import collections
import concurrent.futures
import os
import subprocess
import threading
import traceback

from runs import say, smi, stop

HELP = "GPUs, a run at a time on each: 0,1 (as CUDA_VISIBLE_DEVICES has them) or all; default: one run at a time"
MOST_FAILED = 2  # runs in a row, after which it is the lane that is broken

# gpu: None = as it is. cpus: None = as they are. beside: how many lanes there are.
Lane = collections.namedtuple("Lane", "gpu cpus beside")


def visible():
    """What there is, of that what this process may use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [row[0] for row in smi("index")] if allowed is None else [n for n in allowed.split(",") if n]


def choose(gpus, each=1):
    """Lanes of what --gpus says, `each` on a GPU; processors are cut into as many equal parts."""
    names = [None]
    if gpus:
        there = visible()
        names = there if gpus == "all" else gpus.split(",")
        wrong = [n for n in names if not n or (there and n.isdigit() and n not in there)]
        if wrong or not names:
            stop(f"--gpus {gpus}: found {', '.join(there) or 'no GPU'}")
    n, cpus = len(names) * each, sorted(os.sched_getaffinity(0))
    if n == 1:
        return [Lane(names[0], None, 1)]
    parts = [cpus[i * len(cpus) // n:(i + 1) * len(cpus) // n] or None for i in range(n)]
    return [Lane(names[i // each], parts[i], n) for i in range(n)]


def alone(lanes):
    """All processors and the first GPU: for what others must not disturb."""
    return [Lane(lanes[0].gpu, None, 1)]


# ---- in which order ----

def ends(seconds, n_lanes, left=float("inf")):
    """When each is through if the next free lane takes the next one; what would not be in `left` seconds
    is left out, and never through."""
    free, found = [0.0] * n_lanes, []
    for s in seconds:
        lane = free.index(min(free))
        end = free[lane] + s
        if end <= left:
            free[lane] = end
        found.append(end if end <= left else float("inf"))
    return found


def order(names, seconds, n_lanes, left=float("inf")):
    """The first ones that fit into `left` seconds, then the others. The first as they stand, which is by
    value, if lanes end as early so; if not, the longest first."""
    def through(some):
        return max(ends([seconds[name] for name in some], n_lanes))

    names = list(names)
    for n in range(len(names), 0, -1):
        first = names[:n]
        longest = sorted(first, key=lambda name: -seconds[name])
        if through(longest) < 0.98 * through(first):
            first = longest
        if through(first) <= left:
            return first + names[n:]
    return names


# ---- at the same time ----

class Queue:
    """What is left, and how each ended: True (done), False (no time) or None (failed)."""

    def __init__(self, names):
        self.left, self.ended = collections.deque(names), {}
        self.stopped = threading.Event()

    def next(self):
        try:
            return None if self.stopped.is_set() else self.left.popleft()
        except IndexError:
            return None


def go(lane, queue, do):
    if lane.cpus:
        os.sched_setaffinity(0, lane.cpus)  # of this thread alone
    failed = 0
    while failed < MOST_FAILED and (name := queue.next()) is not None:
        try:
            queue.ended[name] = do(lane, name)
            failed = 0
        except Exception as error:  # also one of ours: it must not keep the lane from the others
            if not isinstance(error, (RuntimeError, OSError, subprocess.SubprocessError)):
                traceback.print_exc()
            say(f"{name}: {error or type(error).__name__}")
            queue.ended[name] = None
            failed += 1
        except KeyboardInterrupt:
            queue.stopped.set()
    if failed == MOST_FAILED and queue.left and lane.beside > 1:
        say(f"GPU {lane.gpu}: {failed} runs failed one after the other: it gets no more")


def share(lanes, names, do):
    """do(lane, name) for each of the names; {name: how it ended} without those that nobody came to. Ctrl-C
    reaches the programs, too: they save and end, then KeyboardInterrupt goes on."""
    queue = Queue(names)
    if len(lanes) == 1:
        go(lanes[0], queue, do)
    else:
        with concurrent.futures.ThreadPoolExecutor(len(lanes)) as pool:
            jobs = [pool.submit(go, lane, queue, do) for lane in lanes]
            while True:
                try:
                    concurrent.futures.wait(jobs)
                    break
                except KeyboardInterrupt:
                    queue.stopped.set()
            for job in jobs:
                job.result()  # an error of ours
    if queue.stopped.is_set():
        raise KeyboardInterrupt
    return queue.ended
