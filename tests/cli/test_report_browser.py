"""The page in a real browser: nothing overflows a phone, both schemes are drawn, it prints."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import planted_run
from poise.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: apt-get install chromium)"),
]
PHONE = 360  # pixels


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    runs = [planted_run.plant(folder / name) for name in ("one", "two-with-a-rather-long-name-of-its-own")]
    out = folder / "page.html"
    write_report([run.path for run in runs], out)
    return out


def browse(page: Path, *flags: str) -> str:
    """What chromium says to these flags, with a profile of its own."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", profile, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_nothing_is_wider_than_the_screen(page: Path, width: int) -> None:
    probe = page.with_name(f"frame{width}.html")
    source = html.escape(page.read_text())
    measure = "document.title = this.contentDocument.documentElement.scrollWidth"
    probe.write_text(f'<iframe width="{width}" height="800" style="border:0" srcdoc="{source}" onload="{measure}">')
    found = re.search(r"<title>(\d+)</title>", browse(probe, "--dump-dom", "--virtual-time-budget=5000"))
    assert found is not None
    assert int(found[1]) <= width


@pytest.mark.parametrize(("scheme", "is_dark"), [("1", False), ("0", True)])
def test_both_schemes_are_drawn(page: Path, scheme: str, is_dark: bool) -> None:
    shot = page.with_name(f"shot{scheme}.png")
    browse(page, f"--screenshot={shot}", "--window-size=1280,1600", f"--blink-settings=preferredColorScheme={scheme}")
    grey = np.asarray(Image.open(shot).convert("L"), dtype=float)
    assert (np.median(grey) < 60) == is_dark
    assert grey.std() > 10  # text and curves stand out from the ground


def test_it_prints(page: Path) -> None:
    printed = page.with_name("page.pdf")
    browse(page, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    pages = re.findall(rb"/Type\s*/Page\b", printed.read_bytes())
    assert 3 <= len(pages) <= 20
