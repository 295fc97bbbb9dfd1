#!/usr/bin/env python3
"""The measured tables of README.md and of pages in docs/ are those of results/: no number is typed by
hand."""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.exit(subprocess.run([sys.executable, str(ROOT / "tools/readme_tables.py"), "--check"]).returncode)
