"""Fuzz one target: python -m tests.fuzz.run NAME [libFuzzer option...]

Needs atheris, which the tests do not: pip install atheris. What it finds is kept in FOLDER/NAME
(FUZZ_FOLDER, by default below the folder for temporary files); copy an input that failed into
corpus/NAME, where tests/fuzz/test_corpus.py runs it from then on.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["fastmtcp"]):
        targets = importlib.import_module("tests.fuzz.targets")
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in targets.TARGETS:
        sys.exit(f"name one of {', '.join(sorted(targets.TARGETS))}")
    folder = Path(os.environ.get("FUZZ_FOLDER") or tempfile.gettempdir(), f"fastmtcp-fuzz-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-artifact_prefix={folder}/", "-max_len=4096", "-timeout=20", *sys.argv[2:]]
    seeds = targets.CORPUS / name
    atheris.Setup([sys.argv[0], *options, str(folder), str(seeds)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
