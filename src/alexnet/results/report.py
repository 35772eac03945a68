"""The report: every table, figure and claim of the paper beside the results of the runs here.

run folders ─ runs.py ─▶ Evidence ─ claims.py ─▶ findings ─ page.py ─▶ report.html, report.md
                                                    └─▶ report.json
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from alexnet.results import figures, page
from alexnet.results.claims import CLAIMS, RELU_OR_TANH, Claim, find_activation
from alexnet.results.findings import (
    NOT_RUN,
    NOT_SHOWN,
    OPPOSITE,
    REPRODUCED,
    SHOWN,
    Evidence,
    Finding,
    StuckLoss,
    find_stuck_losses,
)
from alexnet.results.gallery import Gallery, build_gallery
from alexnet.results.runs import Run, drop_repeats, read_runs
from alexnet.results.scoring import TEN_VIEWS, ErrorRates, Evaluation

log = logging.getLogger(__name__)
STRENGTH = (NOT_RUN, NOT_SHOWN, OPPOSITE, SHOWN, REPRODUCED)  # of verdicts, rising
# By the number of evaluated images it is recognized which data set a run's errors are on.
ILSVRC_2010_TEST_IMAGES = 150_000
ILSVRC_2012_VAL_IMAGES = 50_000
ILSVRC_CLASSES = 1000
CURVES_CAPTION = (
    "Training error of the four-layer net, each side at its best learning rate, a line for each "
    "seed; dotted: 25 %."
)
ClaimFindings = list[tuple[Claim, list[Finding]]]
StuckLosses = dict[str, dict[str, list[StuckLoss]]]


class PaperRow(NamedTuple):
    """`networks` is how many are averaged, 0 for methods of others."""

    model: str
    figures: tuple[str, ...]
    networks: int = 0
    pretrained: bool = False


class PaperTable(NamedTuple):
    """A table of the paper with the errors in the authors' logs; a column of ours is added."""

    title: str
    columns: tuple[str, ...]
    images: int
    rows: list[PaperRow]


TABLES = [
    PaperTable(
        title="Table 1: ILSVRC-2010, test set",
        columns=("model", "top-1, %", "top-5, %", "authors' log"),
        images=ILSVRC_2010_TEST_IMAGES,
        rows=[
            PaperRow("Sparse coding", ("47.1", "28.2", "-")),
            PaperRow("SIFT + Fisher vectors", ("45.7", "25.7", "-")),
            PaperRow("CNN", ("37.5", "17.0", "37.47 / 17.00"), networks=1),
        ],
    ),
    PaperTable(
        title="Table 2: ILSVRC-2012, validation set",
        columns=("model", "top-1, %", "top-5, %", "top-5 of the test set, %", "authors' log"),
        images=ILSVRC_2012_VAL_IMAGES,
        rows=[
            PaperRow("SIFT + Fisher vectors", ("-", "-", "26.2", "-")),
            PaperRow("1 CNN", ("40.7", "18.2", "-", "40.66 / 18.21"), networks=1),
            PaperRow("5 CNNs", ("38.1", "16.4", "16.4", "-"), networks=5),
            PaperRow("1 CNN*", ("39.0", "16.6", "-", "38.99 / 16.62"), networks=1, pretrained=True),
            PaperRow("7 CNNs*", ("36.7", "15.4", "15.3", "-"), networks=7, pretrained=True),
        ],
    ),
]


def report(config: DictConfig) -> dict[str, object]:
    """Writes report.html, report.md and report.json, and returns what the last holds."""
    # Read the runs.
    runs, ensembles = read_runs(config.runs)
    gallery = build_gallery(runs, config.show_run, config.device)
    evidence = Evidence(drop_repeats(runs), ensembles, gallery)
    # Judge the claims.
    found = [(claim, claim.find(evidence)) for claim in CLAIMS]
    stuck_losses = find_stuck_losses(evidence.runs)
    # Write the page.
    output = Path(HydraConfig.get().runtime.output_dir)
    parts = [
        *show_claims(found),
        *show_tables(runs, ensembles),
        *show_learning_curves(evidence.runs),
        *show_gallery(gallery),
        *show_stuck_losses(stuck_losses),
        *list_runs(runs),
    ]
    page.write_page(parts, output)
    content = describe_findings(runs, found, stuck_losses)
    (output / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    log.info("runs: %d, ensembles: %d, page: %s", len(runs), len(ensembles), output / "report.html")
    return content


def describe_findings(
    runs: Sequence[Run], found: ClaimFindings, stuck_losses: StuckLosses
) -> dict[str, object]:
    """The content of report.json."""
    claims = []
    for claim, findings in found:
        for finding in findings:
            claims.append({"claim": claim.number, "title": claim.title, **asdict(finding)})
    losses: dict[str, dict[str, list[dict[str, object]]]] = {}
    for network, by_init in stuck_losses.items():
        losses[network] = {}
        for init, results in by_init.items():
            losses[network][init] = [result._asdict() for result in results]
    return {"runs": [str(run.folder) for run in runs], "claims": claims, "stuck_loss": losses}


def show_claims(found: ClaimFindings) -> list[page.Part]:
    """A tally of verdicts, each claim, and a figure of all differences of errors."""
    strongest = []  # verdict of each claim
    points = []  # of the figure
    for claim, findings in found:
        verdicts = [finding.verdict for finding in findings]
        strongest.append(max(verdicts, key=STRENGTH.index, default=NOT_RUN))
        for finding in findings:
            if finding.value is not None and not finding.ratio:
                points.append((claim, finding))
    counts = {verdict: strongest.count(verdict) for verdict in reversed(STRENGTH)}
    parts: list[page.Part] = [
        page.Tally(counts),
        page.Heading("The claims"),
        page.ClaimList(found),
    ]
    if points:
        caption = "Differences of top-1 error with 95 % intervals; diamonds: the paper's."
        parts.append(page.Drawing("claims", figures.draw_differences(points), caption))
    return parts


def show_tables(runs: Sequence[Run], ensembles: Sequence[Evaluation]) -> list[page.Part]:
    """The paper's tables with a column of our errors."""
    parts: list[page.Part] = []
    for table in TABLES:
        rows = []
        for row in table.rows:
            ours = find_our_errors(row, table.images, runs, ensembles) if row.networks else "-"
            rows.append([row.model, *row.figures, ours])
        parts += [page.Heading(table.title), page.Table([*table.columns, "ours"], rows)]
    return parts


def find_our_errors(
    row: PaperRow, images: int, runs: Sequence[Run], ensembles: Sequence[Evaluation]
) -> str:
    """Our mean top-1 and top-5 errors from ten views of so many images, in %."""
    candidates = _list_alone(runs, row) if row.networks == 1 else _list_averages(ensembles, row)
    rates = [rate for rate in candidates if rate["images"] == images]
    if not rates:
        return NOT_RUN
    top1 = np.mean([rate["top1_error"] for rate in rates])
    top5 = np.mean([rate["top5_error"] for rate in rates])
    return f"{100 * top1:.1f} / {100 * top5:.1f}"


def _list_alone(runs: Sequence[Run], row: PaperRow) -> list[ErrorRates]:
    """Of single networks with 1,000 classes, pre-trained or not as the row's."""
    found = []
    for run in runs:
        is_ilsvrc = run.options["model.num_classes"] == ILSVRC_CLASSES
        is_pretrained = bool(run.options.get("start.run"))
        if is_ilsvrc and is_pretrained == row.pretrained and TEN_VIEWS in run.rates:
            found.append(run.rates[TEN_VIEWS])
    return found


def _list_averages(ensembles: Sequence[Evaluation], row: PaperRow) -> list[ErrorRates]:
    """Of averages over as many networks as in the row."""
    found = []
    for ensemble in ensembles:
        if len(ensemble["runs"]) == row.networks:
            found.append(ensemble["average"][TEN_VIEWS])
    return found


def show_learning_curves(runs: Sequence[Run]) -> list[page.Part]:
    """Fig. 1, if a run belongs to it."""
    lines: dict[str, list[Run]] = {}
    for run in RELU_OR_TANH.find_best_runs(runs):
        lines.setdefault(str(find_activation(run.options)), []).append(run)
    if not lines:
        return []
    return [
        page.Heading("Figure 1: ReLU and tanh"),
        page.Drawing("curves", figures.draw_learning_curves(lines), CURVES_CAPTION),
    ]


def show_gallery(gallery: Gallery | None) -> list[page.Part]:
    """Fig. 3 and 4, as far as there are images."""
    if gallery is None:
        return []
    source = page.Text(f"{gallery.run.describe()}: {gallery.run.folder}")
    parts: list[page.Part] = []
    if gallery.kernels:
        heading = page.Heading("Figure 3: the first layer's kernels by tower")
        parts += [heading, page.KernelImages(gallery.kernels), source]
    if gallery.guesses:
        heading = page.Heading("Figure 4, left: eight images and their likeliest classes")
        parts += [heading, page.GuessList(gallery.guesses), source]
    if gallery.neighbors:
        heading = page.Heading("Figure 4, right: test images and their nearest training images")
        parts += [heading, page.NeighborRows(gallery.neighbors), source]
    return parts


def show_stuck_losses(stuck_losses: StuckLosses) -> list[page.Part]:
    """A table and a figure of each network whose loss was watched (sweep=claims/stuck_loss)."""
    head = ("model.init", "runs", "images until it learned", "images without learning")
    caption = "Images until the loss was 1 % below ln(classes)."
    parts: list[page.Part] = []
    for place, (network, by_init) in enumerate(stuck_losses.items(), 1):
        rows = []
        for init, losses in by_init.items():
            learned = sorted(loss.images for loss in losses if loss.learned)
            stuck = [loss.images for loss in losses if not loss.learned]
            rows.append([init, str(len(losses)), _format_counts(learned), _format_counts(stuck)])
        drawing = figures.draw_stuck_losses(by_init)
        parts += [
            page.Heading(f"How long the loss is stuck at ln(classes): {network}"),
            page.Table(head, rows),
            page.Drawing(f"stuck-loss-{place}", drawing, caption),
        ]
    return parts


def _format_counts(counts: Sequence[float]) -> str:
    return ", ".join(f"{count:,.0f}" for count in counts) or "-"


def list_runs(runs: Sequence[Run]) -> list[page.Part]:
    head = ("run", "network and data", "seed", "top-1, %", "top-5, %", "training top-1, %")
    rows = []
    for run in runs:
        row = [str(run.folder), run.describe(), str(run.seed)]
        for metric in ("val/top1_error", "val/top5_error", "train/top1_error"):
            error = run.read_metric(metric)
            row.append("-" if error is None else f"{100 * error:.2f}")
        rows.append(row)
    return [page.Heading("The runs, last epoch, center crop"), page.Table(head, rows)]
