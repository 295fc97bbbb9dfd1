"""--device on a machine without a GPU, which any machine is with CUDA_VISIBLE_DEVICES empty (see
support.py): what is refused, how, and that `auto` runs on the processor."""
import json
import re
import shutil
import subprocess

import support
from support import Skip, expect, models, qbench

QUALITY = ["--no-speed", "--no-fake", "--max-tokens", "200"]
VERBS = {"run": ["--no-quality", "--speed-context", "16"],
         "analyze": ["--max-tokens", "100"],
         "generate": ["--prompt", "a", "--max-tokens", "1"]}
REASONS = (rb"this build has no CUDA engine|no CUDA driver|no GPU|driver [\d.]+ is older than CUDA|"
           rb"the driver does not start")


def test_device_cuda_without_a_gpu_is_one_line_and_exit_4(folder):
    path = models(folder)["model.bin"]
    for verb, options in VERBS.items():
        for device in ("cuda", "cuda:0", "cuda:99"):
            done = expect(qbench(verb, *options, "--device", device, path), 4)
            assert re.search(rb"--device %s: (%s)" % (device.encode(), REASONS), done.err), done
            assert done.out == b"", done


def test_device_names_are_checked(folder):
    path = models(folder)["model.bin"]
    for device in ("cuda:x", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "cuda0", "gpu",
                   "cpu:0", "CUDA"):
        done = expect(qbench("--no-quality", "--device", device, path), 2)
        assert re.search(rb"expected .*auto, cpu, cuda(,| or) cuda:N", done.err), done


def test_device_auto_is_the_processor_without_a_gpu(folder):
    path = models(folder)["model.bin"]
    for device in ("auto", "cpu"):
        file = folder / f"{device}.json"
        done = expect(qbench(*QUALITY, "--device", device, "--json", file, path))
        record = json.loads(file.read_text())["results"][0]["environment"]
        assert record["device"] == "cpu" and record["gpu"] is None, record
        notes = re.findall(rb"^qbench: note: no GPU is used: (.*)$", done.err, re.M)
        assert len(notes) <= (device == "auto"), done
        assert all(re.match(REASONS, note) for note in notes), done
    done = expect(qbench("--quiet", *QUALITY, path))
    assert done.err == b"", done


def test_device_disabled_by_hand_says_so(folder):
    path = models(folder)["model.bin"]
    done = expect(qbench("--device", "cuda", path, env={"QB_DISABLE": "cuda"}), 4)
    assert b"disabled by QB_DISABLE" in done.err or b"has no CUDA engine" in done.err, done


def test_device_of_an_old_driver_names_both_versions(folder):
    """The driver is a library of one function, which the CUDA runtime asks first."""
    if not re.search(rb"^  gemm_s8/sm90 ", expect(qbench("kernels")).out, re.M):
        raise Skip("this build has no CUDA engine")
    if not shutil.which("cc"):
        raise Skip("cc is not here")
    (folder / "driver.c").write_text("int cuDriverGetVersion(int *v) { *v = 11040; return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c"],
                   check=True)
    path, old = models(folder)["model.bin"], {"LD_LIBRARY_PATH": str(folder)}
    why = rb"driver 11\.4 is older than CUDA \d+\.\d+"
    done = expect(qbench(*QUALITY, "--device", "cuda", path, env=old), 4)
    assert re.search(rb"--device cuda: " + why, done.err), done
    done = expect(qbench(*QUALITY, path, env=old))
    assert re.search(rb"^qbench: note: no GPU is used: " + why + rb"$", done.err, re.M), done
    rows = expect(qbench("kernels", env=old)).out
    assert re.search(rb"gemm_s8/sm90 +cuda +" + why, rows), rows


def test_device_libraries_are_not_linked(_):
    """The program starts where there is no driver and no CUDA."""
    if not shutil.which("ldd"):
        raise Skip("ldd is not here")
    linked = subprocess.run(["ldd", support.QBENCH], stdout=subprocess.PIPE, check=True).stdout
    assert not re.search(rb"cuda|cublas|nvidia|stdc\+\+", linked), linked


def test_kernels_names_what_each_row_of_the_gpu_lacks(_):
    """In a build with CUDA; in one without there are no such rows."""
    for operation, state in re.findall(rb"^  (\w+)/\w+ +cuda +(.*)$", expect(qbench("kernels")).out, re.M):
        assert re.match(REASONS, state), (operation, state)


def test_kernels_lists_the_operation_of_every_kernel_file(_):
    """Read from the source, so that a build without CUDA sees it too."""
    registry = (support.ROOT / "kernels" / "registry.c").read_text()
    listed = re.findall(r'^    \{"(\w+)",', registry, re.M)
    assert "gemm_s8" in listed and "attention_train" in listed, listed
    for path in (support.ROOT / "kernels" / "cuda").glob("*.cu"):
        stem = path.stem if not path.stem.startswith("gemm_stream") else "gemm_u4"  # and gemm_float
        assert any(f"{stem}_".startswith(f"{name}_") for name in listed), (stem, listed)
