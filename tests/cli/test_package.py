#!/usr/bin/env python3
"""The packages: the .tar.gz unpacked and moved, its program and its library in C and C++ (pkg-config,
find_package, static), the .deb unpacked, the same bytes twice. Usage: test_package.py [BUILD].
Standard library only."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
QUALITY = ["--no-speed", "--no-fake", "--device", "cpu"]


def run(*command, code=0, env=None, stdin=None):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, input=stdin,
                          stderr=subprocess.PIPE, env={**os.environ, **(env or {})}, timeout=300)
    assert done.returncode == code, f"{command}: exit {done.returncode}: {done.stderr.decode()[-2000:]}"
    return done.stdout.decode(), done.stderr.decode()


def cache(name):
    found = re.search(rf"^{name}:\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.M)
    return found[1] if found else ""


def make_packages(folder, *options):
    """By CPack, with a date of its own: what it makes, by ending. CPack has make build everything
    anew, which other tests would feel, and ninja nothing."""
    run("cpack", "--config", BUILD / "CPackConfig.cmake", "-B", folder, *options,
        "-D", "CPACK_CMAKE_GENERATOR=Ninja",
        env={"SOURCE_DATE_EPOCH": "1700000000"})
    return {path.suffix: path for path in folder.iterdir() if path.is_file()}


def setUpModule():
    if not any((BUILD / "lib").glob("libqbench.so*")):
        raise unittest.SkipTest(f"{BUILD} has no libqbench.so (QB_LIBRARY=OFF?)")
    holder = tempfile.TemporaryDirectory(prefix="qbench-package-")
    unittest.addModuleCleanup(holder.cleanup)
    Installed.folder = pathlib.Path(holder.name)
    Installed.packages = make_packages(Installed.folder / "packages")
    run("tar", "-xf", Installed.packages[".gz"], "-C", Installed.folder)


class Installed(unittest.TestCase):
    """One installed tree, moved, for all tests."""

    @classmethod
    def setUpClass(cls):
        cls.prefix = cls.folder / "moved"
        if not cls.prefix.exists():
            next(cls.folder.glob("qbench-*")).rename(cls.prefix)
        cls.qbench = cls.prefix / "bin" / "qbench"
        cls.share = cls.prefix / "share" / "qbench"
        cls.model = cls.share / "models" / "gpt2-8m-ours.bin"
        cls.lib = next(cls.prefix.glob("lib*/**/libqbench.so")).parent
        cls.text = cls.folder / "text.txt"
        cls.text.write_bytes((cls.share / "text" / "eval.txt").read_bytes()[:8000])
        cls.pkg_config = {"PKG_CONFIG_PATH": str(cls.lib / "pkgconfig")}

    def flags(self, *options):
        if not shutil.which("pkg-config"):
            self.skipTest("pkg-config is not installed")
        return run("pkg-config", *options, "qbench", env=self.pkg_config)[0].split()

    def expect_score(self, program):
        """The example says what the program says."""
        out, _ = run(program, self.model, "coarse", self.text)
        wanted, _ = run(self.qbench, *QUALITY, "--quiet", "--json", "-", "--text", self.text,
                        self.model)
        got, wanted = (json.loads(text)["results"][0] for text in (out, wanted))
        self.assertGreater(got["quality"]["penalty"], 0)
        for part in ("model", "scheme", "protocol", "quality"):
            self.assertEqual(got[part], wanted[part])
        self.assertEqual(got["text"]["sha256"], wanted["text"]["sha256"])


class Tree(Installed):
    def test_everything_is_there(self):
        for path in ("share/man/man1/qbench.1", "share/bash-completion/completions/qbench",
                     "share/zsh/site-functions/_qbench",
                     "share/fish/vendor_completions.d/qbench.fish", "include/qbench/qbench.h", "share/qbench/result.schema.json",
                     "share/doc/qbench/LICENSE"):
            self.assertGreater((self.prefix / path).stat().st_size, 0, path)
        self.assertIn("qbench ", run(self.qbench, "--version")[0])

    def test_no_file_names_the_folder_it_came_from(self):
        for path in self.prefix.rglob("*"):
            if path.is_file() and path.suffix != ".bin":
                data = path.read_bytes()
                self.assertNotIn(str(self.folder).encode(), data, path)
                if path.suffix in (".pc", ".cmake"):
                    self.assertNotIn(str(ROOT).encode(), data, path)

    def test_binaries_do_not_name_the_source_folder(self):
        if cache("QB_REPRODUCIBLE") != "ON":
            self.skipTest("the build was made without QB_REPRODUCIBLE")
        for path in (self.qbench, self.lib / "libqbench.so", self.lib / "libqbench.a"):
            self.assertNotIn(str(ROOT).encode(), path.read_bytes(), path)

    def test_only_the_interface_is_visible(self):
        out, _ = run("nm", "-D", "--defined-only", self.lib / "libqbench.so")
        names = {line.split()[-1] for line in out.splitlines()} - {"QBENCH_1"}
        header = (self.prefix / "include/qbench/qbench.h").read_text()
        declared = set(re.findall(r"^QBENCH_API [^(]*?(\w+)\(", header, re.M))
        self.assertEqual(names, {f"{name}@@QBENCH_1" for name in declared})


class CudaObjects(unittest.TestCase):
    def test_the_same_bytes_in_any_folder(self):
        """Of a kernel without a name outside, which nvcc names by its file's path."""
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin:/opt/cuda/bin")
        if not nvcc:
            self.skipTest("there is no nvcc here")
        made = []
        with tempfile.TemporaryDirectory() as holder:
            for name in ("one", "another-name"):
                source = pathlib.Path(holder) / name / "kernels" / "k.cu"
                source.parent.mkdir(parents=True)
                source.write_text("namespace { __global__ void k(int *x) { *x = 1; } }\n"
                                  "void f(int *x) { k<<<1, 1>>>(x); }\n")
                run(ROOT / "cmake" / "nvcc_placeless.py", source.parent.parent, nvcc, "-O3",
                    "--objdir-as-tempdir", "-frandom-seed=k", "-MD", "-MT", "k.o", "-MF",
                    source.with_suffix(".d"), "-x", "cu", "-c", source, "-o", source.with_suffix(".o"))
                self.assertIn("k.cu", source.with_suffix(".d").read_text())
                made.append(source.with_suffix(".o").read_bytes())
        self.assertEqual(made[0], made[1])


class Packages(Installed):
    def test_twice_the_same_bytes(self):
        again = make_packages(self.folder / "again", "-G", "TGZ")
        self.assertEqual(again[".gz"].read_bytes(), self.packages[".gz"].read_bytes())

    def test_deb_runs_where_it_is_unpacked(self):
        if not shutil.which("dpkg-deb"):
            self.skipTest("dpkg-deb is not installed")
        about, _ = run("dpkg-deb", "--field", self.packages[".deb"])
        self.assertIn("Package: qbench\n", about)
        if shutil.which("dpkg-shlibdeps"):
            self.assertRegex(about, r"Depends: .*libjansson4")
        self.assertRegex(about, r"Recommends: .*libmicrohttpd12")
        self.assertNotRegex(about, r"Depends: .*libmicrohttpd")
        run("dpkg-deb", "--extract", self.packages[".deb"], self.folder / "deb")
        program = self.folder / "deb" / "usr" / "bin" / "qbench"
        self.assertEqual(run(program, "--version"), run(self.qbench, "--version"))
        out, _ = run(program, *QUALITY, "--quiet", "--text", self.text, self.model)
        self.assertIn("coarse", out)


class Library(Installed):
    def compile(self, name, source, *flags, compiler="cc"):
        run(compiler, "-Wall", "-Wextra", "-Werror", source, *flags, "-o", self.folder / name)
        return self.folder / name

    def test_example_through_pkg_config(self):
        source = self.share / "examples" / "score.c"
        self.assertLessEqual(len(source.read_text().splitlines()), 40)
        self.expect_score(self.compile("score", source, *self.flags("--cflags", "--libs"),
                                       f"-Wl,-rpath,{self.lib}"))

    def test_example_linked_statically(self):
        libs = [flag for flag in self.flags("--static", "--libs") if flag != "-lqbench"]
        self.expect_score(self.compile("score-static", self.share / "examples" / "score.c",
                                       *self.flags("--cflags"), self.lib / "libqbench.a", *libs))

    def test_example_through_find_package(self):
        run("cmake", "-S", self.share / "examples", "-B", self.folder / "example",
            f"-DCMAKE_PREFIX_PATH={self.prefix}")
        run("cmake", "--build", self.folder / "example")
        self.expect_score(self.folder / "example" / "score")

    def test_example_says_what_is_wrong(self):
        program = self.compile("score-errors", self.share / "examples" / "score.c",
                               *self.flags("--cflags", "--libs"), f"-Wl,-rpath,{self.lib}")
        self.assertIn("found 'nosuch'",
                      run(program, self.model, "nosuch", self.text, code=2)[1])
        self.assertIn("score: ", run(program, self.text, "fine", self.text, code=3)[1])

    def test_header_in_cpp(self):
        source = self.folder / "version.cc"
        source.write_text('#include <qbench/qbench.h>\n#include <cstdio>\n'
                          'int main() { std::puts(qbench_version());'
                          ' return qbench_api_version() != QBENCH_API_VERSION; }\n')
        program = self.compile("version", source, *self.flags("--cflags", "--libs"),
                               f"-Wl,-rpath,{self.lib}", compiler="c++")
        self.assertIn("(commit ", run(program)[0])


if __name__ == "__main__":
    if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).is_dir():
        BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
