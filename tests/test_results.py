"""Scores, averages and neighbors against slow NumPy; evaluate.py on real runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from scipy.stats import binomtest

from alexnet.results import scoring
from alexnet.results.evaluate import load, probabilities
from alexnet.results.retrieval import features


@pytest.fixture(scope="module")
def two(small, tmp_path_factory) -> list[str]:
    """Folders of two runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("two")
    done = run(
        "train.py", "-m", *small, "seed=0,1", "trainer.max_epochs=2", f"hydra.sweep.dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    return [str(folder / name) for name in "01"]


def slow_errors(values: np.ndarray, labels: np.ndarray) -> list[float]:
    ranks = np.argsort(-values, 1, kind="stable")
    return [
        float(np.mean([label not in row[:k] for row, label in zip(ranks, labels, strict=True)]))
        for k in (1, 5)
    ]


def slow_ten_views(folder: str) -> np.ndarray:
    """(images, classes) of the run's first 20 validation images, view by view, image by image."""
    finished = load(Path(folder), "best")
    data, split = finished.data, finished.data.store.splits["val"]
    mean, crop, far = data.store.mean.astype(np.float64), data.augment.crop, data.augment.border
    mid, out = far // 2, []
    for i in range(20):
        image = np.empty((1, split.size, split.size, 3), np.uint8)
        split.read(np.array([i]), image)
        views = []
        for y, x in ((0, 0), (0, far), (mid, mid), (far, 0), (far, far)):
            for step in (1, -1):
                patch = image[0, y : y + crop, x : x + crop][:, ::step].astype(np.float64)
                patch = (patch - mean[mid : mid + crop, mid : mid + crop]) * data.augment.scale
                with torch.no_grad():
                    logits = (
                        finished.net(torch.from_numpy(patch.transpose(2, 0, 1)[None]).float())[0]
                        .double()
                        .numpy()
                    )
                e = np.exp(logits - logits.max())
                views.append(e / e.sum())
        out.append(np.mean(views, 0))
    return np.array(out)


def test_ten_views_and_averages_against_a_loop(two, here, tmp_path):
    slow = [slow_ten_views(folder) for folder in two]
    for folder, expected in zip(two, slow, strict=True):
        finished = load(Path(folder), "best")
        views = probabilities(finished.net, finished.data, torch.device("cpu"))
        assert views["ten views"].shape == (1003, 5)
        np.testing.assert_allclose(views["ten views"][:20], expected, atol=1e-5)
    averaged = scoring.average([torch.from_numpy(values) for values in slow], [1.0, 3.0])
    np.testing.assert_allclose(averaged, (slow[0] + 3 * slow[1]) / 4, atol=1e-12)

    here("evaluate.py", f"run=[{two[0]},{two[1]}]", f"hydra.run.dir={tmp_path}")
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["runs"] == two and found["weights"] == [1.0, 1.0]
    both = [load(Path(folder), "best") for folder in two]
    views = [
        probabilities(f.net, f.data, torch.device("cpu"))["ten views"].double().numpy()
        for f in both
    ]
    labels = both[0].data.store.splits["val"].labels
    for values, result in zip(
        [*views, (views[0] + views[1]) / 2], [*found["each"], found["average"]], strict=True
    ):
        top1, top5 = slow_errors(values, labels)
        assert result["ten views"]["top1_error"] == pytest.approx(
            top1, abs=1.5 / 1003
        )  # float32's ties
        assert result["ten views"]["top5_error"] == top5 == 0
        assert result["ten views"]["loss"] == pytest.approx(
            -np.log(values[range(1003), labels]).mean(), rel=1e-4
        )
    rows = [line.split("\t") for line in (tmp_path / "per-class.tsv").read_text().splitlines()[1:]]
    wrong = sum(int(n) * float(error) for _, n, error, *_ in rows)
    assert wrong / 1003 == pytest.approx(found["average"]["ten views"]["top1_error"], abs=1e-3)
    assert sorted(name for name, *_ in rows) == list("abcde")

    here(
        "evaluate.py",
        f"run=[{two[0]},{two[1]}]",
        "weights=search",
        "share_ties=true",
        f"hydra.run.dir={tmp_path}",
    )
    searched = json.loads((tmp_path / "result.json").read_text())
    assert searched["searched"] and all(0 <= weight <= 1 for weight in searched["weights"])


def test_misses_against_a_loop():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 4, (300, 8)).astype(np.float32), rng.integers(0, 8, 300)
    for k in (1, 5):
        expected = []
        for row, label in zip(scores, labels, strict=True):  # kMultiSoftmaxCost
            greater, equal = (row > row[label]).sum(), (row == row[label]).sum()
            expected.append(
                0.0 if greater >= k else 1.0 if equal <= k - greater else (k - greater) / equal
            )
        shared = scoring.misses(
            torch.from_numpy(scores), torch.from_numpy(labels), k, share_ties=True
        )
        np.testing.assert_allclose(1 - shared.numpy(), expected)
        distinct = torch.from_numpy(scores + 0.01 * rng.random((300, 8)).astype(np.float32))
        plain = scoring.misses(distinct, torch.from_numpy(labels), k)
        assert float(plain.mean()) == slow_errors(distinct.numpy(), labels)[k == 5]
        assert torch.equal(
            plain, scoring.misses(distinct, torch.from_numpy(labels), k, share_ties=True)
        )


@pytest.mark.parametrize("count, n", [(0, 10), (3, 10), (500, 1003), (10, 10)])
def test_wilson(count, n):
    interval = binomtest(count, n).proportion_ci(method="wilson")
    assert scoring.wilson(count, n) == pytest.approx([interval.low, interval.high], abs=1e-9)


def test_searched_weights_are_those_of_2012():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 12, 400)
    nets = [
        rng.dirichlet(np.ones(12), 400) + skill * np.eye(12)[labels] for skill in (0.02, 0.1, 0.05)
    ]

    def missed(weights: list[float]) -> float:
        return slow_errors(sum(w * net for w, net in zip(weights, nets, strict=True)), labels)[1]

    weights = [0.5, 0.5, 0.5]
    for _ in range(5):
        for i in range(3):
            options = [[*weights[:i], step / 20, *weights[i + 1 :]] for step in range(21)]
            best = min((option for option in options if sum(option)), key=missed)
            weights = best if missed(best) < missed(weights) else weights
    found = scoring.searched_weights(
        [torch.from_numpy(net) for net in nets], torch.from_numpy(labels)
    )
    assert found == weights and missed(found) < missed([0.5, 0.5, 0.5])


def test_neighbors_against_a_loop(two, here):
    here("evaluate.py", f"run={two[0]}", "what=neighbors", "queries=3", "nearest=4")
    found = json.loads((Path(two[0]) / "checkpoints" / "neighbors.json").read_text())
    finished = load(Path(two[0]), "best")
    data, store = finished.data, finished.data.store

    def feature(split: str, row: int) -> np.ndarray:
        image = np.empty((1, store.size, store.size, 3), np.uint8)
        store.splits[split].read(np.array([row]), image)
        with torch.no_grad():
            return features(finished.net, "relu7", data.augment.center(torch.from_numpy(image)))[
                0
            ].numpy()

    train = [feature("train", i) for i in range(48)]
    for query in found["queries"]:
        own = feature("val", query["image"])
        distances = np.array([np.sqrt(((own - other) ** 2).sum()) for other in train])
        assert [near["image"] for near in query["nearest"]] == np.argsort(distances)[:4].tolist()
        np.testing.assert_allclose(
            [near["distance"] for near in query["nearest"]], np.sort(distances)[:4], rtol=1e-4
        )
    assert (Path(two[0]) / "checkpoints" / "neighbors.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        here("evaluate.py", f"run={two[0]}", "what=neighbors", "layer=relu9")


WRONG = {
    "device=gpu": "device=gpu can't be used, choose auto, cpu or cuda",
    "weights=[0]": "weights=[0] must be null, search or a number from 0 on for each of 1 runs, not all of them 0",
    "weights=[1,2]": "weights=[1, 2] must be null, search or a number",
    "weights=half": "weights=half must be null, search or a number",
    "batch_size=0": "data.batch_size=0",
    "what=neighbors queries=1004": "queries=1004 must lie in 1..1003",
    "what=neighbors nearest=0": "nearest=0 must lie in 1..48",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_end_in_one_line(options, two, here, capfd):
    with pytest.raises(SystemExit):
        here("evaluate.py", f"run={two[0]}", *options.split())
    (said,) = capfd.readouterr().err.splitlines()
    assert WRONG[options] in said


def test_a_run_without_its_curves_is_reported(two, here, tmp_path):
    folder = shutil.copytree(two[0], tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    here("report.py", f"runs={folder}", f"hydra.run.dir={tmp_path / 'report'}")
    assert str(folder) in (tmp_path / "report" / "report.html").read_text()
