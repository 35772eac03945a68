"""The report's figures as SVG.

Lines and text take the page's text color, so that the figures are readable on light and on dark.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet.results.claims import Claim
from alexnet.results.comparisons import GOAL
from alexnet.results.findings import OPPOSITE, REPRODUCED, Finding, StuckLoss
from alexnet.results.runs import Run

INK = "#010203"  # replaced by the page's text color
GRAY = "#8a8f98"
COLORS = ("#3b82c4", "#d9662b", "#2f9e67", "#a05bb5", "#c0427c", "#8a7a2f")
VERDICT_COLORS = {REPRODUCED: COLORS[2], OPPOSITE: COLORS[1]}
EPOCH_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "alexnet",  # so that a figure has the same bytes each time
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
}


def draw_learning_curves(lines: Mapping[str, Sequence[Run]]) -> str:
    """Fig. 1: training error against epochs, a line for each run until it reached its goal."""
    with rc_context(STYLE):
        figure, axes = _start_figure(height=3.8)
        for (name, runs), color in zip(lines.items(), COLORS, strict=False):
            style = "--" if "tanh" in name else "-"
            label: str | None = name
            for run in runs:
                curve = run.curves.get("train/top1_error", [])
                epochs = range(1, len(curve) + 1)
                axes.plot(epochs, curve, style, color=color, lw=1.6, alpha=0.85, label=label)
                label = None  # one entry of the legend for all seeds
        axes.axhline(GOAL, color=INK, lw=0.8, ls=":")
        axes.set(xscale="log", xlabel="epochs", ylabel="training error", ylim=(0, None))
        # matplotlib would label a logarithmic axis with powers of ten.
        last_epoch = max(2, axes.get_xlim()[1])
        ticks = [epoch for epoch in EPOCH_TICKS if epoch <= last_epoch]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
        axes.legend(frameon=False)
        return _render_svg(figure)


def draw_differences(rows: Sequence[tuple[Claim, Finding]]) -> str:
    """Each comparison's difference in points with its interval, beside the paper's."""
    with rc_context(STYLE):
        figure, axes = _start_figure(height=0.9 + 0.42 * len(rows))
        labels = []
        # The first claim is at the top, because the y axis is inverted below.
        for place, (claim, finding) in enumerate(rows):
            assert finding.value is not None
            color = VERDICT_COLORS.get(finding.verdict, GRAY)
            if finding.interval:
                axes.plot(
                    finding.interval, [place, place], color=color, lw=2.4, solid_capstyle="round"
                )
            _plot_point(axes, finding.value, place, "ours", marker="o", color=color)
            if claim.paper_value is not None:
                _plot_point(
                    axes, claim.paper_value, place, "paper", marker="D", mfc="none", mec=INK
                )
            labels.append(f"{claim.number}  {finding.what}")
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(range(len(rows)), labels)
        axes.set(xlabel="top-1 error, points", ylim=(len(rows) - 0.5, -0.6))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, loc="best")
        return _render_svg(figure)


def _plot_point(axes: Axes, x: float, y: float, label: str, **style: Any) -> None:
    """A point; the first of a kind also in the legend."""
    (point,) = axes.plot(x, y, ls="none", ms=7, **style)
    if label not in axes.get_legend_handles_labels()[1]:
        point.set_label(label)


def draw_stuck_losses(by_init: Mapping[str, Sequence[StuckLoss]]) -> str:
    """Images until the loss fell below chance: a dot for each run, a triangle if it never did."""
    with rc_context(STYLE):
        figure, axes = _start_figure(height=0.9 + 0.5 * len(by_init))
        for place, (losses, color) in enumerate(zip(by_init.values(), COLORS, strict=False)):
            # Side by side, because runs often take the same number of images.
            offsets = np.linspace(-0.16, 0.16, len(losses)) if len(losses) > 1 else [0.0]
            for loss, offset in zip(losses, offsets, strict=True):
                marker = "o" if loss.learned else ">"
                axes.plot(
                    loss.images,
                    place + offset,
                    marker,
                    color=color,
                    ms=8,
                    alpha=0.85,
                    mec="none",
                )
        axes.set_yticks(range(len(by_init)), list(by_init))
        axes.set(xlabel="images (▸ no learning until the end of the run)")
        axes.set_ylim(len(by_init) - 0.5, -0.5)
        axes.set_xlim(0, None)
        axes.grid(axis="x", color=GRAY, alpha=0.3)
        return _render_svg(figure)


def _start_figure(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots()


def _render_svg(figure: Figure) -> str:
    """The figure as an SVG element that scales with its column."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    element = text[text.index("<svg") :].replace(INK, "currentColor")
    return element.replace("<svg ", '<svg role="img" ', 1)
