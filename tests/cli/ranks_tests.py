"""qbench train in several processes (mpirun): against one process, run against run, shares of the
optimiser's states, other numbers of ranks, lost ranks, signals. On the processor."""
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import support
from support import Skip, expect, no_leftovers, qbench
from train_tests import lines_of, same_end, write_data_folder

TINY = ["--preset", "bb-1l", "--d-model", "32", "--context", "16", "--batch", "6", "--quiet",
        "--micro-batch", "1", "--threads", "1", "--log-every", "1", "--eval-windows", "4"]
NEVER_ENDS = [*TINY, "--steps", "1000000", "--eval-every", "0", "--save-every", "5"]

# A shell that keeps the loss from mpirun for a while: the other ranks notice it themselves.
KEEPS_IT = '"$0" "$@"; echo $? >> %s; sleep 4'


@functools.lru_cache(None)
def mpirun_command():
    """What starts n processes, without n and the program."""
    mpirun = shutil.which("mpirun")
    if not mpirun:
        raise Skip("mpirun is not here (Debian: openmpi-bin)")
    version = subprocess.run([mpirun, "--version"], stdout=subprocess.PIPE, text=True).stdout
    command = [mpirun]
    if "Open MPI" in version:
        command += ["--oversubscribe", "--bind-to", "none"]
        command += ["--allow-run-as-root"] if os.getuid() == 0 else []
    tried = subprocess.run([*command, "-n", "2", support.QBENCH, "train", "--preset", "bb-1l"],
                           stderr=subprocess.PIPE, text=True, env=support.BASE_ENV, timeout=60)
    if "without MPI" in tried.stderr:
        raise Skip("the program was built without MPI")
    return command


def start_ranks(n, *args, shell=None):
    """shell: a script that gets the program as $0 and its arguments as $@."""
    program = ["sh", "-c", shell, support.QBENCH] if shell else [support.QBENCH]
    return subprocess.Popen([*mpirun_command(), "-n", str(n), *program, "train", *map(str, args)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=support.BASE_ENV)


def ranks(n, *args, code=0):
    process = start_ranks(n, *args)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (process.returncode, out, err)
    return out, [line for line in err.splitlines() if line.startswith("qbench: ")]


def alone(*args):
    return expect(qbench("train", *args))


def losses(run):
    """Of training and of evaluations; not of what is measured with a part left out."""
    return [line["loss"] for line in lines_of(run) if line["kind"] in ("train", "eval")]


def check_close(a, b, limit=1e-5):
    assert len(a) == len(b) > 0
    worst = max(abs(x - y) / abs(x) for x, y in zip(a, b))
    assert worst < limit, worst


def descendants(pid):
    """Process ids below pid."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            for child in map(int, file.read().split()):
                found += [child, *descendants(child)]
    return found


def rank_processes(process, n):
    """{rank: process id} of the running program."""
    def look():
        found = {}
        for pid in descendants(process.pid):
            try:
                environ = open(f"/proc/{pid}/environ", "rb").read()
                name = os.path.realpath(f"/proc/{pid}/exe")
            except OSError:
                continue
            rank = re.search(rb"(?:^|\0)(?:OMPI_COMM_WORLD_RANK|PMI_RANK)=(\d+)", environ)
            if rank and name == os.path.realpath(support.QBENCH):
                found[int(rank[1])] = pid
        return found

    for _ in range(400):
        found = look()
        if len(found) == n:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} of {n} ranks were found")


def wait_for_checkpoint(run, process):
    while not list(run.glob("step-*.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def last_checkpoint(run):
    return sorted(run.glob("step-*.ckpt"))[-1]


def test_ranks_learn_what_one_process_learns(folder):
    """Also where ranks have unequal shares of the windows, or none, and of the parameters."""
    mpirun_command()
    for name, more in (("adam", ["--clip", "0.5"]), ("ortho", ["--optimizer", "orthoadam"]),
                       ("both", ["--optimizer", "orthoadam", "--rotate-both"]),
                       ("rms", ["--optimizer", "rmsprop"])):
        args = [*TINY, "--steps", "12", "--eval-every", "6", *more, "--out"]
        alone(*args, folder / f"{name}-1")
        for n in (2, 4) if name in ("adam", "ortho") else (3,):
            ranks(n, *args, folder / f"{name}-{n}")
            check_close(losses(folder / f"{name}-1"), losses(folder / f"{name}-{n}"))
    ranks(8, *TINY, "--steps", "4", "--eval-every", "6", "--out", folder / "many")
    check_close(losses(folder / "adam-1")[:1], losses(folder / "many")[:1])


def test_ranks_give_the_same_bits_in_every_run(folder):
    for run in ("a", "b"):
        ranks(3, *TINY, "--steps", "20", "--optimizer", "orthoadam", "--out", folder / run)
    same_end(folder / "a", folder / "b")


def test_ranks_train_on_shards(folder):
    mpirun_command()
    data = write_data_folder(folder / "shards")
    args = ["--preset", "gpt2-1m", "--data", data, "--steps", "6", "--batch", "4", "--context",
            "16", "--micro-batch", "1", "--eval-windows", "5", "--log-every", "1", "--out"]
    alone(*args, folder / "one")
    _, notes = ranks(2, *args, folder / "two")
    check_close(losses(folder / "one"), losses(folder / "two"), 1e-4)
    assert any("2 ranks" in note for note in notes), notes


def test_ranks_share_the_states_of_the_optimiser(folder):
    args = [*TINY, "--steps", "2", "--d-model", "128"]
    ranks(4, *args, "--out", folder / "four")
    alone(*args, "--out", folder / "one")
    n_elems = json.loads(qbench("inspect", "--json", "-",
                                last_checkpoint(folder / "one")).out)["buffer_elems"]
    one, four = (lines_of(folder / run, "train")[-1]["memory_bytes"] for run in ("one", "four"))
    spared = (one - four) / (2 * 4 * n_elems)  # two states: 3/4 of them are elsewhere
    assert 0.6 < spared < 0.9, spared


def test_ranks_resume_with_another_number_of_ranks(folder):
    mpirun_command()
    args = [*TINY, "--optimizer", "orthoadam", "--schedule", "constant", "--eval-every", "10"]
    alone(*args, "--steps", "40", "--out", folder / "one")
    run = folder / "run"
    ranks(3, *args, "--steps", "10", "--out", run)
    alone("--resume", run, "--steps", "20", "--quiet")
    ranks(2, "--resume", run, "--steps", "30", "--quiet")
    ranks(4, "--resume", run, "--steps", "40", "--quiet")
    check_close([line["loss"] for line in lines_of(folder / "one", "train")],
                [line["loss"] for line in lines_of(run, "train")])


def test_a_lost_rank_ends_all_and_the_checkpoint_is_named(folder):
    run, codes = folder / "run", folder / "codes"
    process = start_ranks(3, *NEVER_ENDS, "--out", run, shell=KEEPS_IT % codes)
    wait_for_checkpoint(run, process)
    pid = rank_processes(process, 3)[1]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert sorted(codes.read_text().split()) == ["137", "4", "4"], (codes.read_text(), err)
    said = re.findall(rf"rank \d of 3: rank 1 \(process {pid}\) was lost; last good checkpoint: "
                      r"(\S+)", err)
    assert said and all(expect(qbench("verify", path)) for path in said), err
    steps = int(re.search(r"step-(\d+)", str(last_checkpoint(run)))[1])
    ranks(2, "--resume", run, "--steps", steps + 3, "--quiet")
    no_leftovers(run)


def test_a_lost_first_rank_ends_all(folder):
    run, codes = folder / "run", folder / "codes"
    process = start_ranks(2, *NEVER_ENDS, "--out", run, shell=KEEPS_IT % codes)
    wait_for_checkpoint(run, process)
    os.kill(rank_processes(process, 2)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert sorted(codes.read_text().split()) == ["137", "4"], err
    assert "last good checkpoint: " in err, err


def test_a_signal_to_one_rank_saves_and_ends_all(folder):
    run, codes = folder / "run", folder / "codes"
    process = start_ranks(3, *NEVER_ENDS, "--out", run, shell=KEEPS_IT % codes)
    wait_for_checkpoint(run, process)
    os.kill(rank_processes(process, 3)[2], signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert codes.read_text().split() == ["130", "130", "130"], (codes.read_text(), err)
    (said,) = [line for line in err.splitlines() if line.startswith("qbench: ")]
    steps = int(re.search(r"interrupted after step (\d+) of 1000000 and saved", said)[1])
    assert last_checkpoint(run).name == f"step-{steps:08}.ckpt"
    ranks(3, "--resume", run, "--minutes", "0.0001", "--quiet")


def test_what_fails_in_all_ranks_is_said_once(folder):
    run = folder / "run"
    ranks(2, *TINY, "--steps", "2", "--out", run)
    for args, code in (([*TINY, "--steps", "2", "--out", run], 2), (["--resume", folder], 3),
                       ([*TINY, "--device", "cuda", "--out", folder / "x"], 4)):
        _, said = ranks(2, *args, code=code)
        assert len(said) == 1, said


def test_diverging_ranks_stop_and_name_the_tensor(folder):
    _, said = ranks(2, *TINY, "--lr", "1000", "--optimizer", "sgd_momentum", "--steps", "2000",
                    "--save-every", "1", "--eval-every", "0", "--out", folder / "run", code=4)
    assert len(said) == 1 and re.search("NaN or infinity in .*; last good checkpoint: ", said[0]), \
        said


def test_one_of_several_processes_does_not_train_alone(folder):
    done = expect(qbench("train", *TINY, "--steps", "1", "--out", folder / "run",
                         env={"SLURM_STEP_NUM_TASKS": "2", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                              "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}), 3)
    assert b"found one of 2 processes" in done.err
    assert not (folder / "run").exists()


def test_bench_of_ranks(folder):
    """Flags that come last replace the models' own, so that all are tiny here."""
    done = subprocess.run(
        [support.ROOT / "bench" / "ranks.py", support.QBENCH, folder / "out", "--mpirun",
         " ".join(mpirun_command()), "--", "--task", "bb", "--vocab", "67", "--n-layers", "1",
         "--d-model", "32", "--n-heads", "1", "--head-dim", "32", "--d-ff", "32", "--context", "16",
         "--batch", "4", "--steps", "3", "--threads", "1"], text=True, env=support.BASE_ENV,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 and not done.stderr, done
    assert done.stdout.count("  same: ") == 7 and "2 ranks: " in done.stdout, done.stdout
    records = [json.loads(line) for line in (folder / "out" / "ranks.jsonl").read_text().split("\n")
               if line]
    assert len(records) == 4 + 8 and all(r["worst"] < 2e-4 for r in records if "check" in r)


# ---- share/slurm ----

def test_slurm_script_runs_its_grid(folder):
    """With an srun that runs one process, and a run that is interrupted and queued again."""
    for name, text in (("srun", 'while [ "${1#--}" != "$1" ]; do shift; done; "$@"; exit ${CODE:-$?}'),
                       ("scontrol", 'echo "$@" > ' + str(folder / "queued"))):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {**support.BASE_ENV, "PATH": f"{folder}:{os.environ['PATH']}", "QBENCH": support.QBENCH,
           "SEEDS": "5 6", "SLURM_JOB_ID": "77"}

    def submit(**more):
        return subprocess.run(
            [support.ROOT / "share" / "slurm" / "train.sbatch", "bb-1l", folder, folder / "out",
             *TINY[2:], "--steps", "2"], env={**env, **more}, text=True, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    last = submit(SLURM_ARRAY_TASK_ID="7")
    run = folder / "out" / "softmax1-orthoadam-6"
    assert last.returncode == 0 and (run / "model.bin").exists(), last
    assert json.loads((run / "config.json").read_text())["seed"] == 6
    assert submit(SLURM_ARRAY_TASK_ID="8").returncode == 2
    assert not (folder / "queued").exists()
    again = submit(SLURM_ARRAY_TASK_ID="7", CODE="130")
    assert again.returncode == 130 and (folder / "queued").read_text() == "requeue 77\n", again
    assert "2 of 2 steps" in again.stdout
