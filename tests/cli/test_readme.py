#!/usr/bin/env python3
"""The measured tables of README.md and of pages in docs/ are those of results/: no number is typed by
hand. Links between the repository's pages lead somewhere, and docs/README.md names every page."""
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


found = list(broken_links())
print(*found, sep="\n", end="\n" if found else "")
done = subprocess.run([sys.executable, str(ROOT / "tools/readme_tables.py"), "--check"])
sys.exit(done.returncode or bool(found))
