"""The README's promises: its Python runs, its commands exist, its links lead somewhere, its figures are in the tree."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [
    line.split(" #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.strip()
]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)


def test_python_block_trains(tmp_path: Path) -> None:
    """As printed, but for fewer steps."""
    (code,) = [text for language, text in BLOCKS if language == "python"]
    assert "max_steps=60" in code
    script = tmp_path / "script.py"
    script.write_text(code.replace("max_steps=60", "max_steps=3"))
    finished = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "poise/variance_ratio" in finished.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("poise ")])
def test_poise_commands_are_understood(command: str) -> None:
    """Each command parses: `--help` after it lists the very flags that it uses."""
    words = shlex.split(command)
    flags = [word for word in words if word.startswith("--")]
    helped = run([sys.executable, "-m", "poise.cli", words[1], "--help"], cwd=ROOT)
    assert helped.returncode == 0, helped.stderr
    assert all(flag in helped.stdout for flag in flags), (flags, helped.stdout)


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
