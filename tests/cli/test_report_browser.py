"""The page in a real browser: nothing overflows a phone, completions open, both schemes are drawn, it prints."""

from __future__ import annotations

import html
import json
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
PHONE = 375  # pixels
# Opens every completion as a reader does, and measures the page then.
MEASURE = """
const page = this.contentDocument, box = one => page.querySelector(one).getBoundingClientRect();
const closed = [...page.querySelectorAll('details:not([open])')];
closed.forEach(each => each.querySelector('summary').click());
document.title = JSON.stringify({
  width: page.documentElement.scrollWidth,
  tables: [...page.querySelectorAll('.wide')].map(each => each.scrollWidth - each.clientWidth),
  closed: closed.length,
  opened: closed.filter(each => each.open && each.querySelector('.body').getBoundingClientRect().height > 0).length,
  gap: box('.figures.one').top - box('.wide:has(+ .figures)').bottom,
  shades: [...new Set([...page.querySelectorAll('pre i')].map(each => getComputedStyle(each).backgroundColor))],
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    runs = [planted_run.plant(folder / name) for name in ("one", "two-with-a-rather-long-name-of-its-own")]
    out = folder / "page.html"
    write_report([*(run.path for run in runs), _plant_study(folder / "study")], out)
    return out


def _plant_study(folder: Path) -> Path:
    """A table too wide for a phone, and a picture after it."""
    (folder / "figures").mkdir(parents=True)
    row = {f"a column of number {place}": "0.1234 [0.1, 0.2]" for place in range(9)}
    record = {"kind": "value", "config": {"a_setting_with_a_long_name": "a/path/" * 20}, "tables": {"all": [row] * 3}}
    (folder / "study.json").write_text(json.dumps(record))
    Image.new("RGB", (1400, 900), "navy").save(folder / "figures" / "rivals.png")
    return folder


def browse(page: Path, *flags: str) -> str:
    """What chromium says to these flags, with a profile of its own."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", profile, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_nothing_is_wider_than_the_screen(page: Path, width: int) -> None:
    """Opened completions included; a table that has no room scrolls in its own box, and pictures keep off it."""
    probe = page.with_name(f"frame{width}.html")
    source = html.escape(page.read_text())
    measure = html.escape(MEASURE)
    probe.write_text(f'<iframe width="{width}" height="800" style="border:0" srcdoc="{source}" onload="{measure}">')
    said = re.search(r"<title>(\{.*?\})</title>", browse(probe, "--dump-dom", "--virtual-time-budget=5000"))
    assert said is not None
    found = json.loads(said[1])
    assert found["width"] <= width
    assert (max(found["tables"]) > 0) == (width == PHONE)
    assert found["opened"] == found["closed"] > 20
    assert found["gap"] >= 16
    assert len(found["shades"]) == 2  # tokens of one and of two nats


def test_headings_are_printed_with_what_they_head(page: Path) -> None:
    if not shutil.which("pdftotext"):
        pytest.skip("no pdftotext (Debian: apt-get install poppler-utils)")
    printed = page.with_name("headings.pdf")
    browse(page, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    text = subprocess.run(["pdftotext", str(printed), "-"], capture_output=True, text=True, check=True).stdout
    [curves] = [sheet for sheet in text.split("\f") if "Curves\n" in sheet]
    assert "Accuracy on prompts that are never trained on." in curves


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
