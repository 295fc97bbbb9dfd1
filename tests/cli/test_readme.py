#!/usr/bin/env python3
"""The measured tables of README.md and of pages in docs/ are those of results/: no number is typed by
hand. Links between the repository's pages lead somewhere, docs/README.md names every page, and what
CONTRIBUTING.md says that the main job calls is where it says."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def pages():
    return [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
        page for folder in ("docs", "results", "share", "bench") for page in (ROOT / folder).rglob("*.md")]


def broken_links():
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                yield f"{page.relative_to(ROOT)}: {target} is not there"
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").iterdir():
        if f"]({page.name})" not in index and page.name != "README.md":
            yield f"docs/README.md: {page.name} is not in it"


def misplaced_calls():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    chain = re.findall(r"^ {4,}(\w+) {2,}(\w+/\w+\.c)\b", text, re.M)
    for name, path in chain:
        file = ROOT / path
        if not file.exists() or not re.search(rf"^\w[^;=]*\b{name}\(", file.read_text(), re.M):
            yield f"CONTRIBUTING.md: {name} is not in {path}"
    if len(chain) < 20:
        yield f"CONTRIBUTING.md: found {len(chain)} calls of the main job, expected 20 or more"


found = [*broken_links(), *misplaced_calls()]
print(*found, sep="\n", end="\n" if found else "")
done = subprocess.run([sys.executable, str(ROOT / "tools/readme_tables.py"), "--check"])
sys.exit(done.returncode or bool(found))
