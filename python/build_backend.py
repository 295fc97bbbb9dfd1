"""Builds the wheel: the Python files, libqbench.so and the metadata, in one archive (PEP 517, 427).

The library is $QBENCH_LIBRARY, else ../build/lib/libqbench.so, else that of build-package. The same
files give the same bytes. Standard library only."""
import base64
import hashlib
import os
import pathlib
import platform
import re
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
DATE = (1980, 1, 1, 0, 0, 0)  # the first that an archive can have


def field(name):
    text = (HERE / "pyproject.toml").read_text()
    return re.search(rf'^{name} = "(.*)"$', text, re.M)[1]


def library():
    places = [HERE.parent / folder / "lib" / "libqbench.so" for folder in ("build", "build-package")]
    if os.environ.get("QBENCH_LIBRARY"):
        places = [pathlib.Path(os.environ["QBENCH_LIBRARY"])]
    for path in places:
        if path.exists():
            return path
    raise FileNotFoundError(f"found none of {', '.join(map(str, places))}: expected libqbench.so "
                            "(make builds it; $QBENCH_LIBRARY names another)")


def metadata():
    return (f"Metadata-Version: 2.1\nName: {field('name')}\nVersion: {field('version')}\n"
            f"Summary: {field('description')}\nLicense: Apache-2.0\n"
            f"Requires-Python: {field('requires-python')}\n")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name, version = field("name"), field("version")
    info, tag = f"{name}-{version}.dist-info", f"py3-none-linux_{platform.machine()}"
    files = {f"qbench/{path.name}": path.read_bytes() for path in (HERE / "qbench").glob("*.py")}
    files["qbench/libqbench.so.0"] = library().read_bytes()
    files[f"{info}/METADATA"] = metadata().encode()
    files[f"{info}/LICENSE"] = (HERE.parent / "LICENSE").read_bytes()
    files[f"{info}/WHEEL"] = (f"Wheel-Version: 1.0\nGenerator: qbench\nRoot-Is-Purelib: false\n"
                              f"Tag: {tag}\n").encode()
    record = ""
    for path, data in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / wheel, "w") as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(path, DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return wheel
