"""Every table, figure and claim of the paper beside what runs here came to."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from alexnet.results import figures, findings, gallery, page
from alexnet.results.claims import CLAIMS, Claim, activation
from alexnet.results.findings import NOT_RUN, NOT_SHOWN, OPPOSITE, REPRODUCED, SHOWN, Finding
from alexnet.results.runs import Run, matches

log = logging.getLogger(__name__)
STRENGTH = (NOT_RUN, NOT_SHOWN, OPPOSITE, SHOWN, REPRODUCED)
TABLE_1 = [
    ("Sparse coding", "47.1", "28.2", "-"),
    ("SIFT + Fisher vectors", "45.7", "25.7", "-"),
    ("CNN", "37.5", "17.0", "37.47 / 17.00"),
]
TABLE_2 = [
    ("SIFT + Fisher vectors", "-", "-", "26.2", "-"),
    ("1 CNN", "40.7", "18.2", "-", "40.66 / 18.21"),
    ("5 CNNs", "38.1", "16.4", "16.4", "-"),
    ("1 CNN*", "39.0", "16.6", "-", "38.99 / 16.62"),
    ("7 CNNs*", "36.7", "15.4", "15.3", "-"),
]


def report(cfg: DictConfig) -> dict[str, Any]:
    """Writes report.html, report.md and report.json, and gives what the last holds. Raises FileNotFoundError if the
    pattern names no finished run."""
    patterns = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    folders = sorted({folder for pattern in patterns for folder in matches(pattern)})
    runs = [
        Run(f) for f in folders if (f / "config.yaml").is_file() and (f / "result.json").is_file()
    ]
    if not runs:
        raise FileNotFoundError(
            f"runs={cfg.runs} names no folder of a finished run (config.yaml and result.json)"
        )
    ensembles = [found for f in folders if (found := _ensemble(f / "result.json"))]
    shown = gallery.chosen(runs, cfg.images)
    images = _images(shown, cfg.device) if shown else {}
    rows = [(claim, _findings(claim, runs, ensembles, shown, images)) for claim in CLAIMS]
    lengths = findings.plateau(runs)
    out = Path(HydraConfig.get().runtime.output_dir)
    page.write(
        [
            *_claims(rows),
            *_tables(runs, ensembles),
            *_figures(runs, shown, images, lengths),
            *_list(runs),
        ],
        out,
    )
    found = {
        "runs": [str(run.folder) for run in runs],
        "claims": [
            {"claim": c.number, "title": c.title, **f._asdict()} for c, many in rows for f in many
        ],
        "plateau": lengths,
    }
    (out / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    log.info("runs: %d, ensembles: %d, page: %s", len(runs), len(ensembles), out / "report.html")
    return found


def _ensemble(file: Path) -> dict[str, Any] | None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found if "average" in found else None


def _images(run: Run, device: str) -> dict[str, page.Part]:
    """What there is to see of a run, by claim."""
    parts: dict[str, page.Part] = {"C14": page.Towers(gallery.towers(run))}
    if guesses := gallery.guesses(run, device):
        parts["C15"] = page.Guesses(guesses)
    if near := gallery.near(run):
        parts["C16"] = page.Near(near)
    return parts


def _findings(
    claim: Claim,
    runs: list[Run],
    ensembles: list[dict[str, Any]],
    shown: Run | None,
    images: dict[str, page.Part],
) -> list[Finding]:
    if claim.number in ("C15", "C16"):
        there = shown if claim.number in images else None
        return (
            [Finding("image", findings.where(there), None, None, "1", SHOWN, False, "below")]
            if there
            else []
        )
    if claim.number == "C9":
        return findings.views(runs)
    if claim.number == "C10":
        return findings.averages(ensembles)
    if claim.number == "C12":
        return findings.fall_2009(runs)
    if claim.number == "C14":
        return findings.towers(runs)
    return findings.compared(claim, runs)


def _claims(rows: list[tuple[Claim, list[Finding]]]) -> list[page.Part]:
    best = [max((f.verdict for f in many), key=STRENGTH.index, default=NOT_RUN) for _, many in rows]
    parts: list[page.Part] = [
        page.Tally({v: best.count(v) for v in reversed(STRENGTH) if v in best})
    ]
    parts += [page.Heading("The claims"), page.Claims(rows)]
    points = [(c, f) for c, many in rows for f in many if f.value is not None and not f.ratio]
    if points:
        caption = "Differences of top-1 error with 95 % intervals; diamonds: the paper's."
        parts.append(page.Drawing("claims", figures.forest(points), caption))
    return parts


def _tables(runs: list[Run], ensembles: list[dict[str, Any]]) -> list[page.Part]:
    head = ("model", "top-1, %", "top-5, %")
    first = [
        (*row, _ours(runs, ensembles, 150000, row[0]) if row[0] == "CNN" else "-")
        for row in TABLE_1
    ]
    second = [
        (*row, _ours(runs, ensembles, 50000, row[0]) if "CNN" in row[0] else "-") for row in TABLE_2
    ]
    return [
        page.Heading("Table 1: ILSVRC-2010, test set"),
        page.Table((*head, "authors' log", "ours"), first),
        page.Heading("Table 2: ILSVRC-2012, validation set"),
        page.Table((*head, "top-5 of the test set, %", "authors' log", "ours"), second),
    ]


def _ours(runs: list[Run], ensembles: list[dict[str, Any]], images: int, model: str) -> str:
    """Errors from ten views on a validation set of so many images in 1,000 classes: CNN, 1 CNN*, 5 CNNs …"""
    count = int(model.split()[0]) if model[0].isdigit() else 1
    found = [e["average"]["ten views"] for e in ensembles if len(e["runs"]) == count]
    if count == 1:
        alone = [run for run in runs if run.options["model.num_classes"] == 1000]
        found = [
            run.views["ten views"]
            for run in alone
            if run.views and bool(run.options.get("start.run")) == ("*" in model)
        ]
    found = [views for views in found if views["images"] == images]
    if not found:
        return NOT_RUN
    return " / ".join(
        f"{100 * np.mean([views[f'top{k}_error'] for views in found]):.1f}" for k in (1, 5)
    )


def _figures(
    runs: list[Run],
    shown: Run | None,
    images: dict[str, page.Part],
    lengths: dict[str, dict[str, list[float]]],
) -> list[page.Part]:
    parts: list[page.Part] = []
    lines: dict[str, list[Run]] = {}
    for run in findings.at_best(CLAIMS[0], runs):
        lines.setdefault(str(activation(run.options)), []).append(run)
    if lines:
        caption = "Training error of the four-layer net, each side at its best rate, a line for each seed; dotted: 25 %."
        parts += [
            page.Heading("Figure 1: ReLU and tanh"),
            page.Drawing("curves", figures.learning_curves(lines), caption),
        ]
    headings = {
        "C14": "Figure 3: the first layer's kernels by tower",
        "C15": "Figure 4, left: eight images and their likeliest classes",
        "C16": "Figure 4, right: test images and their nearest training images",
    }
    for number, part in images.items():
        assert shown is not None
        parts += [
            page.Heading(headings[number]),
            part,
            page.Text(f"{findings.where(shown)}: {shown.folder}"),
        ]
    for place, by_init in lengths.items():
        rows = [
            (
                name,
                str(len(values)),
                ", ".join(f"{value:,.0f}" for value in sorted(values) if value > 0) or "-",
                ", ".join(f"{-value:,.0f}" for value in values if value < 0) or "-",
            )
            for name, values in by_init.items()
        ]
        head = ("model.init", "runs", "images until it left", "ended before it left, after")
        parts += [
            page.Heading(f"The plateau at ln(classes): {place}"),
            page.Table(head, rows),
            page.Drawing(
                "plateau",
                figures.plateau(by_init),
                "Images until the loss was 1 % below ln(classes).",
            ),
        ]
    return parts


def _list(runs: list[Run]) -> list[page.Part]:
    names = ("val/top1_error", "val/top5_error", "train/top1_error")
    rows = [
        (
            str(run.folder),
            findings.where(run),
            str(run.seed),
            *(
                f"{100 * value:.2f}" if (value := run.final(name)) is not None else "-"
                for name in names
            ),
        )
        for run in runs
    ]
    head = ("run", "network and data", "seed", "top-1, %", "top-5, %", "training top-1, %")
    return [page.Heading("The runs, last epoch, center crop"), page.Table(head, rows)]
