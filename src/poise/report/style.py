"""How figures look, wherever they are drawn: one style, one palette, two sizes."""

from __future__ import annotations

# The page gives these colours their value for light and dark (page/style.css); here they are the light ones.
INK, SOFT, LINE = "#1c1c1e", "#5f6368", "#dcdfe3"
# Okabe and Ito's palette, told apart by colour-blind readers too; yellow and black are toned down to show on both.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98300", "#56b4e9", "#6b6b6b")
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "poise",
}
# Inches; of a figure that has the page's width, and of one that shares it with a second one, so that they tile. Ten
# point type on a panel is readable on a phone 360 pixels wide.
SIZE = (7, 4.6)
PANEL = (5.6, 3.7)
