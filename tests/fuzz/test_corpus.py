"""The seeds of the fuzz targets, and all inputs that ever failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS

INPUTS = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_seeds_and_bears_the_simplest_inputs(name: str) -> None:
    assert any(path.parent.name == name for path in INPUTS)
    for data in (b"", b"\x00", b"\xff", bytes(300), b"\xff" * 300, bytes(range(256))):
        TARGETS[name](data)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())
