"""Every claim's command, on tiny runs, and the report of their results.

Runs are trained when a test first needs them and kept for the others, so each test passes alone.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, RunCommand, read_result, read_weights, run_command
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from scipy import stats

from alexnet.data.store import Store
from alexnet.results.claims import CLAIMS
from alexnet.results.comparisons import GOAL
from alexnet.results.findings import (
    NOT_RUN,
    NOT_SHOWN,
    OPPOSITE,
    REPRODUCED,
    StuckLoss,
    find_stuck_losses,
    judge,
)
from alexnet.results.runs import Run

SWEEPS = sorted(file.stem for file in (ROOT / "conf/sweep/claims").glob("*.yaml"))
# The ensembles' networks are those of other sweeps; relu_tanh has a test of its own.
TRAINED_SWEEPS = sorted(set(SWEEPS) - {"ensemble5", "ensemble7", "relu_tanh"})
# Each starts from the one before, the first from net_145; with the classes of its data.
PRETRAINING = {"six_conv_2009": 10184, "six_conv_2011": 5, "six_conv": 5}


def list_jobs(sweep: str) -> list[list[str]]:
    """The options of each job of a sweep, with one seed; two for color noise."""
    params = OmegaConf.load(ROOT / f"conf/sweep/claims/{sweep}.yaml").hydra.sweeper.params
    options = [f"{name}={values}" for name, values in params.items() if name != "data"]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(options), None)
    seeds = {"seed=0", "seed=1"} if sweep == "color_noise" else {"seed=0"}
    return [job for job in jobs if not seeds.isdisjoint(job)]


@dataclass
class TinyRuns:
    """Runs of an epoch on the small store, in `folder`, by name."""

    folder: Path
    store: Store
    run_in_process: RunCommand

    def train(self, name: str, *options: str) -> Path:
        """Trains once; options of the same name replace those that make the run tiny."""
        folder = self.folder / name
        if (folder / "result.json").exists():
            return folder
        tiny = ["data=store", f"data.folder={self.store.folder}", "data.batch_size=8"]
        tiny += ["trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
        if any(option.startswith(("model=cifar", "experiment=fig1")) for option in options):
            tiny += ["augment.crop=24"]
        else:
            tiny += ["augment.crop=67", "augment.scale=0.016"]
            tiny += ["model.width=0.125", "model.init=kaiming"]
        self.run_in_process("train.py", *tiny, *options, f"hydra.run.dir={folder}")
        return folder

    def train_sweep(self, sweep: str) -> list[Path]:
        jobs = enumerate(list_jobs(sweep))
        return [self.train(f"{sweep}-{i}", *options) for i, options in jobs]

    def train_relu_and_tanh(self) -> list[Path]:
        """At one of the learning rates."""
        quick = ["model.init=kaiming", "augment.scale=0.016", "trainer.max_epochs=40"]
        quick += ["trainer.limit_val_batches=1"]
        folders = []
        for options in list_jobs("relu_tanh"):
            if "optimizer.lr=0.008" in options:
                activation = options[1].removeprefix("model.activation=")
                folders.append(self.train(f"relu_tanh-{activation}", *options, *quick))
        return folders

    def train_pretraining(self, last: str) -> tuple[Path, Path]:
        """The chain of runs up to `last`: the last and its parent."""
        folder = self.train("net_145", "experiment=net_145")
        for name, classes in PRETRAINING.items():
            parent = folder
            options = [f"experiment={name}", f"start.run={parent}", f"model.num_classes={classes}"]
            folder = self.train(name, *options)
            if name == last:
                break
        return folder, parent


@pytest.fixture(scope="module")
def tiny_runs(
    small_store: Store, run_in_process: RunCommand, tmp_path_factory: pytest.TempPathFactory
) -> TinyRuns:
    return TinyRuns(tmp_path_factory.mktemp("claims"), small_store, run_in_process)


@dataclass
class Report:
    folder: Path
    claims: dict[str, list[dict[str, Any]]]  # findings by number
    html: str
    markdown: str


@pytest.fixture(scope="module")
def report(
    tiny_runs: TinyRuns, run_in_process: RunCommand, tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """The report of all sweeps, with an average and one run's images."""
    for sweep in TRAINED_SWEEPS:
        tiny_runs.train_sweep(sweep)
    tiny_runs.train_relu_and_tanh()
    tiny_runs.train_pretraining("six_conv")
    runs = tiny_runs.folder
    shown = runs / "color_noise-0"
    pair = f"run=[{shown},{runs}/color_noise-1]"
    run_in_process("evaluate.py", pair, f"hydra.run.dir={runs}/average")
    run_in_process("evaluate.py", f"run={shown}", "what=neighbors", "nearest=3")
    folder = tmp_path_factory.mktemp("report")
    run_in_process("report.py", f"runs={runs}/**", f"show_run={shown}", f"hydra.run.dir={folder}")
    claims: dict[str, list[dict[str, Any]]] = {claim.number: [] for claim in CLAIMS}
    for finding in json.loads((folder / "report.json").read_text())["claims"]:
        claims[finding["claim"]].append(finding)
    html = (folder / "report.html").read_text()
    return Report(folder, claims, html, (folder / "report.md").read_text())


@pytest.mark.parametrize("sweep", TRAINED_SWEEPS)
def test_every_side_of_a_sweep_trains(sweep, tiny_runs):
    for folder in tiny_runs.train_sweep(sweep):
        assert read_result(folder)["epochs"] == 1


def test_relu_and_tanh_stop_at_the_training_error_of_figure_1(tiny_runs):
    for folder in tiny_runs.train_relu_and_tanh():
        finished = read_result(folder)
        assert finished["final"]["train/top1_error"] <= GOAL
        assert finished["epochs"] < 40


@pytest.mark.parametrize("experiment", PRETRAINING)
def test_a_pretrained_network_starts_with_the_weights_of_its_parent_run(experiment, tiny_runs):
    child, parent = tiny_runs.train_pretraining(experiment)
    before = read_weights(parent)["net.conv3.weight"]
    after = read_weights(child)["net.conv3.weight"]
    change = (after - before).abs().max()
    assert change < 1e-3
    assert before.std() > 1e-3


def test_a_parent_run_of_another_width_ends_in_one_line(tiny_runs, capfd):
    parent = tiny_runs.train("net_145", "experiment=net_145")
    options = ["experiment=net_145", "start.layers=[conv1,fc6]", "model.width=0.25"]
    capfd.readouterr()
    with pytest.raises(SystemExit):
        tiny_runs.train("wider", *options, f"start.run={parent}")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"start.run={parent} does not fit: conv1.weight is (12, 3, 11, 11)" in line
    assert "choose the layers to copy by start.layers" in line


def test_a_sweep_trains_all_of_its_jobs(small_options, tmp_path):
    options = [option for option in small_options if option != "model=alexnet"]
    options += ["seed=0", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}"]
    finished = run_command("train.py", "sweep=claims/lrn", *options)
    assert finished.returncode == 0, finished.stderr
    stages = [OmegaConf.load(tmp_path / job / "config.yaml").model.stage1 for job in "01"]
    assert stages == [["norm", "pool", "relu"], ["pool", "relu"]]


@pytest.mark.parametrize("number", [f"C{i}" for i in range(1, 17)])
def test_every_claim_has_a_finding(number, report):
    assert report.claims[number]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.number}: {claim.title}")
def test_every_claim_is_shown_with_its_command(claim, report):
    assert claim.title.replace("'", "&#x27;") in report.html
    assert claim.title in report.markdown
    assert f"`{claim.command}`" in report.markdown


def test_the_tables_say_that_nothing_was_run_on_imagenet(report):
    assert re.search(rf"<td>1 CNN</td>.*?<td>{NOT_RUN}</td></tr>", report.html)


def test_the_page_needs_no_other_file(report):
    assert not re.search(r'(src|href)="(?!data:|#)', report.html)


def test_the_page_shows_all_figures(report):
    assert report.html.count("<svg") == 3  # differences, Fig. 1, stuck losses
    kernels, guesses, neighbors = 2, 8, 5 * 4
    assert report.html.count("data:image") == kernels + guesses + neighbors


def test_the_figures_of_the_markdown_page_are_there(report):
    names = re.findall(r"\(figures/([^)]+)\)", report.markdown)
    assert len(names) == 3 + 2 + 8 + 1
    for name in names:
        assert (report.folder / "figures" / name).stat().st_size > 300


def test_color_noise_is_compared_over_seeds(report, tiny_runs):
    folders = tiny_runs.train_sweep("color_noise")
    errors = [100 * read_result(folder)["final"]["val/top1_error"] for folder in folders]
    noise, no_noise = errors[:2], errors[2:]
    (finding,) = report.claims["C5"]
    assert finding["n"] == "2 + 2"
    assert finding["value"] == pytest.approx(np.mean(no_noise) - np.mean(noise))
    interval = stats.ttest_ind(no_noise, noise, equal_var=False).confidence_interval()
    assert finding["interval"] == pytest.approx(list(interval))


def test_ten_views_are_compared_with_the_center_crop(report, tiny_runs):
    # color_noise-0 is another sweep's side too, which was not evaluated and stands for both.
    rates = read_result(tiny_runs.folder / "color_noise-1" / "checkpoints")
    gain = rates["center crop"]["top1_error"] - rates["ten views"]["top1_error"]
    (finding,) = report.claims["C9"]
    assert finding["n"] == "1"
    assert finding["value"] == pytest.approx(100 * gain)


def test_an_average_is_compared_with_its_best_network(report, tiny_runs):
    evaluation = read_result(tiny_runs.folder / "average")
    best = min(rates["ten views"]["top1_error"] for rates in evaluation["each"])
    gain = 100 * (best - evaluation["average"]["ten views"]["top1_error"])
    (finding,) = report.claims["C10"]
    assert finding["n"] == "2"
    assert finding["value"] == pytest.approx(gain)
    assert f"{finding['value']:+.2f}" in report.html


def test_a_loss_that_stays_stuck_is_told_from_one_that_does_not(tiny_runs, tmp_path):
    stuck, *_ = tiny_runs.train_sweep("stuck_loss")
    learned = shutil.copytree(stuck, tmp_path / "learned")
    result = read_result(learned)
    result["final"]["train/images_until_learning"] = 24.0
    (learned / "result.json").write_text(json.dumps(result))
    ((_, by_init),) = find_stuck_losses([Run(stuck), Run(learned)]).items()
    assert by_init == {"authors": [StuckLoss(48, learned=False), StuckLoss(24, learned=True)]}


@pytest.mark.parametrize(
    ("interval", "better", "verdict"),
    [
        ((0.1, 0.5), 1, REPRODUCED),
        ((0.1, 0.5), -1, OPPOSITE),
        ((-0.5, -0.1), 1, OPPOSITE),
        ((-0.5, -0.1), -1, REPRODUCED),
        ((-0.1, 0.5), 1, NOT_SHOWN),
        ((0.0, 0.5), 1, NOT_SHOWN),
        (None, 1, NOT_SHOWN),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(interval, better, verdict):
    assert judge(interval, better=better) == verdict


def test_a_pattern_without_finished_runs_ends_in_one_line(run_in_process, tmp_path, capfd):
    with pytest.raises(SystemExit):
        run_in_process("report.py", f"runs={tmp_path}/**")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"runs={tmp_path}/** matches no folder of a finished run" in line
