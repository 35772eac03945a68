"""Every claim's command, shortened, and the report over what the runs leave."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, result, run
from omegaconf import OmegaConf
from scipy import stats

from alexnet.results.claims import CLAIMS
from alexnet.results.findings import NOT_RUN

SWEEPS = sorted(file.stem for file in (ROOT / "conf/sweep/claims").glob("*.yaml"))
PRE_TRAINED = {  # each begins with the one before
    "six_conv_2009": ["model.num_classes=10184"],
    "six_conv_2011": ["model.num_classes=5"],
    "six_conv": ["model.num_classes=5"],
}


def jobs(sweep: str) -> list[list[str]]:
    """The options of each job of a sweep, with one seed, or two for color noise."""
    seeds = 2 if sweep == "color_noise" else 1
    params = OmegaConf.load(ROOT / f"conf/sweep/claims/{sweep}.yaml").hydra.sweeper.params
    values = [
        [f"{key}={value}" for value in _choices(str(text))[: seeds if key == "seed" else None]]
        for key, text in params.items()
    ]
    return [list(options) for options in product(*values)]


def _choices(text: str) -> list[str]:
    return [text.strip("'")] if "[" in text else text.split(",")


@pytest.fixture(scope="module")
def done(small, tmp_path_factory) -> dict[str, Path]:
    """Folders of what ran so far, by name."""
    return {"root": tmp_path_factory.mktemp("claims")}


@pytest.fixture
def train(here, small, small_store, done):
    def call(name: str, *options: str) -> Path:
        folder = done["root"] / "runs" / name
        cifar = any("fig1" in option or option.startswith("model=cifar") for option in options)
        tiny = [
            "data=store",
            f"data.folder={small_store.folder}",
            "data.batch_size=8",
            "trainer.log_every_n_steps=1",
        ]
        tiny += (
            ["augment.crop=24"]
            if cifar
            else [
                "model.width=0.125",
                "model.init=kaiming",
                "augment.scale=0.016",
                "augment.crop=67",
            ]
        )
        given = {option.split("=")[0] for option in options} - {"data"}
        tiny = [option for option in tiny if option.split("=")[0] not in given]
        options = tuple(option for option in options if not option.startswith("data="))
        here("train.py", *tiny, *options, f"hydra.run.dir={folder}")
        done[name] = folder
        return folder

    return call


@pytest.mark.parametrize(
    "sweep", [name for name in SWEEPS if name not in ("ensemble5", "ensemble7", "relu_tanh")]
)
def test_both_sides(sweep, train):
    for i, options in enumerate(jobs(sweep)):
        assert result(train(f"{sweep}-{i}", *options, "trainer.max_epochs=1"))["epochs"] == 1


def test_relu_and_tanh_reach_their_goal(train):
    quick = (
        "model.init=kaiming",
        "augment.scale=0.016",
        "trainer.max_epochs=40",
        "trainer.limit_val_batches=1",
    )
    for i, options in enumerate(jobs("relu_tanh")):
        if "optimizer.lr=0.008" in options:
            ended = result(train(f"relu_tanh-{i}", *options, *quick))
            assert ended["final"]["train/top1_error"] <= 0.25 and ended["epochs"] < 40


def test_pre_training_starts_from_its_forerunner(train, done):
    import torch

    before = train("source", "experiment=net_145", "trainer.max_epochs=1")
    for name, options in PRE_TRAINED.items():
        folder = train(
            name, f"experiment={name}", f"start.run={before}", *options, "trainer.max_epochs=1"
        )
        there, here = (
            torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for place in (before, folder)
        )
        change = (there["net.conv3.weight"] - here["net.conv3.weight"]).abs().max()
        assert change < 1e-3 < (there["net.conv3.weight"]).std()
        before = folder


def test_a_start_that_does_not_fit(train, done):
    options = (
        "experiment=net_145",
        f"start.run={done['source']}",
        "start.layers=[conv1,fc6]",
        "model.width=0.25",
    )
    with pytest.raises(SystemExit):
        train("unlike", *options)


def test_a_sweep_by_its_name(small, tmp_path):
    options = [option for option in small if option != "model=alexnet"]
    finished = run(
        "train.py",
        "sweep=claims/lrn",
        *options,
        "seed=0",
        "trainer.max_epochs=1",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert finished.returncode == 0, finished.stderr
    stages = [OmegaConf.load(tmp_path / name / "config.yaml").model.stage1 for name in "01"]
    assert stages == [["norm", "pool", "relu"], ["pool", "relu"]]


def test_the_report_has_every_claim(done, here, tmp_path):
    runs = done["root"] / "runs"
    pair = f"run=[{runs}/color_noise-0,{runs}/color_noise-1]"
    here("evaluate.py", pair, f"hydra.run.dir={runs}/average")
    here("evaluate.py", f"run={runs}/color_noise-0", "what=neighbors", "nearest=3")
    here(
        "report.py", f"runs={runs}/**", f"images={runs}/color_noise-0", f"hydra.run.dir={tmp_path}"
    )
    found = json.loads((tmp_path / "report.json").read_text())
    rows = {
        claim.number: [row for row in found["claims"] if row["claim"] == claim.number]
        for claim in CLAIMS
    }
    assert all(rows[f"C{i}"] for i in range(1, 17)), {name for name in rows if not rows[name]}
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    for claim in CLAIMS:
        assert (
            claim.title.replace("'", "&#x27;") in page
            and f"`{claim.command}`" in text
            and claim.title in text
        )
    assert NOT_RUN in page  # tables 1 and 2 need ImageNet
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page must need no other file"
    assert page.count("<svg") == 3 and page.count("data:image") == 2 + 8 + 5 * 4
    for name in re.findall(r"\(figures/([^)]+)\)", text):
        assert (tmp_path / "figures" / name).stat().st_size > 300
    _check_numbers(rows, done, runs, page)


def _check_numbers(rows, done, runs: Path, page: str) -> None:
    """What the report says of C5, C9 and C10 from the files of the runs, by their names."""
    final = [100 * result(done[f"color_noise-{i}"])["final"]["val/top1_error"] for i in range(4)]
    (row,) = rows["C5"]
    assert row["n"] == "2 + 2" and row["value"] == pytest.approx(
        np.mean(final[2:]) - np.mean(final[:2])
    )
    interval = stats.ttest_ind(final[2:], final[:2], equal_var=False).confidence_interval()
    assert row["interval"] == pytest.approx(list(interval))
    views = json.loads((runs / "color_noise-0" / "checkpoints" / "result.json").read_text())
    gain = views["center crop"]["top1_error"] - views["ten views"]["top1_error"]
    assert views["ten views"]["top1_gain"] == pytest.approx(gain)
    average = json.loads((runs / "average" / "result.json").read_text())
    best = min(each["ten views"]["top1_error"] for each in average["each"])
    (row,) = rows["C10"]
    assert row["value"] == pytest.approx(
        100 * (best - average["average"]["ten views"]["top1_error"])
    )
    assert f"{row['value']:+.2f}" in page and row["n"] == "2"


def test_nothing_to_report(tmp_path):
    finished = run("report.py", f"runs={tmp_path}/**")
    assert finished.returncode == 1 and "names no folder of a finished run" in finished.stderr
