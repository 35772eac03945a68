"""The report's figures. Lines and text take the page's color, so that they read in light and in dark."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from alexnet.results.claims import GOAL, Claim
from alexnet.results.findings import OPPOSITE, REPRODUCED, Finding
from alexnet.results.runs import Run

INK = "#010203"  # replaced by the page's text color
COLORS = ("#3b82c4", "#d9662b", "#2f9e67", "#a05bb5", "#c0427c", "#8a7a2f")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alexnet",
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": INK for part in ("edge", "label", "title")},
}


def svg(figure: Figure) -> str:
    """The figure as an SVG element that scales with its column."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return text.replace("<svg ", '<svg role="img" ', 1)


def learning_curves(lines: Mapping[str, Sequence[Run]]) -> str:
    """Fig. 1: training error against epochs; a thin line for each run, ending where it reached its goal."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axis = figure.subplots()
        for (name, runs), color in zip(lines.items(), COLORS, strict=False):
            for i, run in enumerate(runs):
                curve = run.curves.get("train/top1_error", [])
                dashes = "--" if "tanh" in name else "-"
                epochs = range(1, len(curve) + 1)
                axis.plot(
                    epochs,
                    curve,
                    dashes,
                    color=color,
                    lw=1.6,
                    alpha=0.85,
                    label=name if i == 0 else None,
                )
        axis.axhline(GOAL, color=INK, lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="epochs", ylabel="training error", ylim=(0, None))
        ticks = [
            n
            for n in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500)
            if n <= max(2, axis.get_xlim()[1])
        ]
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.legend(frameon=False)
        return svg(figure)


def forest(rows: Sequence[tuple[Claim, Finding]]) -> str:
    """Each comparison's difference in points with its interval, beside the paper's figure."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, (claim, finding) in enumerate(rows):
            color = {REPRODUCED: COLORS[2], OPPOSITE: COLORS[1]}.get(finding.verdict, "#8a8f98")
            if finding.interval:
                axis.plot(
                    finding.interval, [place, place], color=color, lw=2.4, solid_capstyle="round"
                )
            assert finding.value is not None
            axis.plot(
                finding.value, place, "o", color=color, ms=7, label="ours" if place == 0 else None
            )
            if claim.figure is not None:
                label = "paper" if not axis.get_legend_handles_labels()[1].count("paper") else None
                axis.plot(claim.figure, place, "D", mfc="none", mec=INK, ms=7, label=label)
        axis.axvline(0, color=INK, lw=0.8)
        axis.set_yticks(
            range(len(rows)), [f"{claim.number}  {finding.what}" for claim, finding in rows]
        )
        axis.set(xlabel="top-1 error, points", ylim=(len(rows) - 0.5, -0.6))
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.legend(frameon=False, loc="best")
        return svg(figure)


def plateau(lengths: Mapping[str, Sequence[float]]) -> str:
    """Images until the loss left ln(classes), a dot for each run; triangles had not left it when they were ended."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.5 * len(lengths)), layout="constrained")
        axis = figure.subplots()
        for place, (values, color) in enumerate(zip(lengths.values(), COLORS, strict=False)):
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
            for value, shift in zip(values, spread, strict=True):
                marker = ">" if value < 0 else "o"
                axis.plot(
                    abs(value), place + shift, marker, color=color, ms=8, alpha=0.85, mec="none"
                )
        axis.set_yticks(range(len(lengths)), list(lengths))
        axis.set(
            xlabel="images (▸ still there at the end of the run)", ylim=(len(lengths) - 0.5, -0.5)
        )
        axis.set_xlim(0, None)
        axis.grid(axis="x", color="#8a8f98", alpha=0.3)
        return svg(figure)
