#!/usr/bin/env python3
"""Tests tools/test_cuda.sh on stand-ins for the GPU, the programs and compute-sanitizer: tests are
processes of their own under a tool, shared out over the GPUs, and what each did is told and counted."""
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NVIDIA_SMI = "echo 0; echo 1"
# Says where it ran what; a test called `bad` is one that the tool complains about.
SANITIZER = """
[ "$1" = --help ] && { echo "--racecheck-filter-cluster-id"; exit; }
for program; do :; done
echo "$2 $program $QB_TEST_ONLY on ${CUDA_VISIBLE_DEVICES-all}" >> "$RUNS"
"$program" || exit
case $QB_TEST_ONLY in
bad) echo "========= Error: Race reported"; echo "========= RACECHECK SUMMARY: 1 hazard"; exit 86 ;;
slow) exec sleep 30 ;;
esac
echo "========= RACECHECK SUMMARY: 0 hazards"
"""
# A program of cmocka's; one whose only test is `late` does not end.
PROGRAM = """
tests="{tests}"
[ -n "$QB_TEST_LIST" ] && {{ printf '%s\\n' $tests; exit; }}
[ "$tests" = late ] && exec sleep 30
sleep 0.1
echo "[  PASSED  ] $(echo ${{QB_TEST_ONLY:-$tests}} | wc -w) test(s)."
"""


class CudaSuite(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.runs = self.folder / "runs"
        self.runs.touch()
        self.put("bin/nvidia-smi", NVIDIA_SMI)
        self.put("bin/compute-sanitizer", SANITIZER)

    def put(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(0o755)

    def programs(self, **tests):
        for name, names in tests.items():
            self.put(f"t/test_cuda_{name}", PROGRAM.format(tests=names))

    def suite(self, *options, **variables):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QB_", "CUDA_"))}
        env |= {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "RUNS": str(self.runs)} | variables
        done = subprocess.run([ROOT / "tools/test_cuda.sh", *options, self.folder / "t"], env=env,
                              capture_output=True, text=True, timeout=60)
        self.ran = sorted(self.runs.read_text().split("\n")[:-1])
        return done.returncode, re.sub(r"\d+ s$", "N s", done.stdout, flags=re.MULTILINE)

    def test_plain_programs_are_whole(self):
        self.programs(one="a b", two="c")
        code, said = self.suite()
        self.assertEqual((code, self.ran), (0, []))
        self.assertRegex(said, r"ok +test_cuda_one +2 passed, 0 failed, 0 skipped; N s\n")
        self.assertTrue(said.endswith("\n3 passed, 0 failed, 0 skipped\n"), said)

    def test_a_tool_takes_tests_one_by_one_on_all_gpus(self):
        self.programs(one="a b c", two="d")
        code, said = self.suite("--tools", "racecheck")
        self.assertEqual(code, 0)
        self.assertEqual([run.rsplit(" ", 1)[0] for run in self.ran],
                         ["racecheck ./test_cuda_one a on", "racecheck ./test_cuda_one b on",
                          "racecheck ./test_cuda_one c on", "racecheck ./test_cuda_two  on"])
        self.assertEqual(sorted(run[-1] for run in self.ran), list("0011"))
        self.assertRegex(said, r"ok +test_cuda_one\.b racecheck +RACECHECK SUMMARY: 0 hazards; N s\n")
        self.assertRegex(said, r"ok +test_cuda_two racecheck +RACECHECK")
        self.assertTrue(said.endswith("\n4 passed, 0 failed, 0 skipped\n"), said)

    def test_visible_gpus_are_kept_to(self):
        self.programs(one="a b")
        self.assertEqual(self.suite("--tools", "memcheck", CUDA_VISIBLE_DEVICES="3")[0], 0)
        self.assertEqual({run[-1] for run in self.ran}, {"3"})
        self.put("bin/nvidia-smi", "exit 1")
        self.runs.write_text("")
        self.assertEqual(self.suite("--tools", "memcheck")[0], 0)
        self.assertEqual({run.split()[-1] for run in self.ran}, {"all"})

    def test_what_fails_is_said(self):
        self.programs(one="a bad")
        code, said = self.suite("--tools", "plain,racecheck", "--logs", self.folder / "logs")
        self.assertEqual(code, 1)
        self.assertRegex(said, r"FAILED +test_cuda_one\.bad racecheck +RACECHECK SUMMARY: 1 hazard; N s\n"
                               r"    \| =+ Error: Race reported\n")
        self.assertTrue(said.endswith("\n3 passed, 1 failed, 0 skipped\n"), said)
        self.assertIn("1 hazard", (self.folder / "logs/test_cuda_one.bad.racecheck").read_text())

    def test_what_does_not_end_is_late(self):
        self.programs(one="late")
        code, said = self.suite(QB_TEST_SECONDS="1")
        self.assertEqual(code, 1)
        self.assertRegex(said, r"late +test_cuda_one +0 passed, 1 failed, 0 skipped; N s\n")

    def test_the_budget_ends_what_runs_and_starts_no_more(self):
        self.programs(one="slow a b")
        code, said = self.suite("--tools", "racecheck", "--jobs", "1", "--budget", "2")
        self.assertEqual(code, 0)
        self.assertEqual(said.count("no time left"), 3)
        self.assertTrue(said.endswith("\nnothing ran: every test needs a GPU\n"
                                      "0 passed, 0 failed, 3 skipped\n"), said)


if __name__ == "__main__":
    unittest.main()
