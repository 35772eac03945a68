"""Errors, averages and neighbors against slow NumPy; evaluate.py and report.py on real runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunCommand, read_result, run_command
from scipy.stats import binomtest

from alexnet.results import scoring
from alexnet.results.evaluate import predict_views, print_errors
from alexnet.results.finished import FinishedRun, load_run
from alexnet.results.retrieval import compute_features

IMAGES = 1003  # of the small store's validation set
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def two_runs(
    small_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders of two runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("two")
    options = ["seed=0,1", "trainer.max_epochs=2", f"hydra.sweep.dir={folder}"]
    finished = run_command("train.py", "-m", *small_options, *options)
    assert finished.returncode == 0, finished.stderr
    return folder / "0", folder / "1"


@dataclass
class EvaluatedPair:
    """What evaluate.py wrote of two runs, and their probabilities from ten views in float64."""

    folder: Path
    result: dict[str, Any]
    labels: np.ndarray
    predicted: list[np.ndarray]


@pytest.fixture(scope="module")
def pair(
    two_runs: tuple[Path, Path],
    run_in_process: RunCommand,
    tmp_path_factory: pytest.TempPathFactory,
) -> EvaluatedPair:
    folder = tmp_path_factory.mktemp("pair")
    runs = f"run=[{two_runs[0]},{two_runs[1]}]"
    run_in_process("evaluate.py", runs, f"hydra.run.dir={folder}")
    predicted = []
    for run_folder in two_runs:
        run = load_run(run_folder, "best")
        views = predict_views(run, CPU)
        predicted.append(views["ten views"].double().numpy())
    labels = run.data.store.splits["val"].labels
    return EvaluatedPair(folder, read_result(folder), labels, predicted)


# Slow references ----------------------------------------------------------------------------------


def count_errors_slowly(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of rows whose label is not among the k greatest scores."""
    ranks = np.argsort(-scores, 1, kind="stable")
    missed = 0
    for row, label in zip(ranks, labels, strict=True):
        missed += label not in row[:k]
    return missed / len(labels)


def count_shared_misses_slowly(scores: np.ndarray, labels: np.ndarray, k: int) -> list[float]:
    """kMultiSoftmaxCost of cuda-convnet: equal scores share the places that are left to them."""
    misses = []
    for row, label in zip(scores, labels, strict=True):
        greater = (row > row[label]).sum()
        equal = (row == row[label]).sum()
        if greater >= k:
            hit = 0.0
        elif equal <= k - greater:
            hit = 1.0
        else:
            hit = (k - greater) / equal
        misses.append(1 - hit)
    return misses


def predict_slowly(run: FinishedRun, patch: np.ndarray) -> np.ndarray:
    """Probabilities of one (crop, crop, 3) patch, softmax in float64."""
    x = torch.from_numpy(patch.transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        logits = run.net(x)[0].double().numpy()
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def average_ten_views_slowly(run: FinishedRun, rows: range) -> np.ndarray:
    """(rows, classes) probabilities of validation images, view by view."""
    store = run.data.store
    augment = run.data.augment
    crop = augment.crop
    border = store.size - crop
    middle = border // 2
    mean = store.mean.astype(np.float64)[middle : middle + crop, middle : middle + crop]
    corners = [(0, 0), (0, border), (middle, middle), (border, 0), (border, border)]
    averages = []
    for image in store.splits["val"].images(np.array(rows)):
        views = []
        for y, x in corners:
            patch = image[y : y + crop, x : x + crop].astype(np.float64)
            for view in (patch, patch[:, ::-1]):
                views.append(predict_slowly(run, (view - mean) * augment.scale))
        averages.append(np.mean(views, 0))
    return np.array(averages)


def search_weights_slowly(networks: list[np.ndarray], labels: np.ndarray) -> list[float]:
    """avg-valid.py of 2012."""

    def count_errors(weights: list[float]) -> float:
        total = np.zeros_like(networks[0])
        for weight, network in zip(weights, networks, strict=True):
            total += weight * network
        return count_errors_slowly(total, labels, 5)

    weights = [0.5] * len(networks)
    for _ in range(5):
        for i in range(len(networks)):
            options = [[*weights[:i], step / 20, *weights[i + 1 :]] for step in range(21)]
            best = min(filter(sum, options), key=count_errors)
            if count_errors(best) < count_errors(weights):
                weights = best
    return weights


# Scores -------------------------------------------------------------------------------------------


@pytest.fixture
def tied_scores() -> tuple[np.ndarray, np.ndarray]:
    """(300, 8) scores of four values, and labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, (300, 8)).astype(np.float32), rng.integers(0, 8, 300)


@pytest.mark.parametrize("k", [1, 5])
def test_shared_ties_count_as_in_the_authors_kernels(k, tied_scores):
    scores, labels = tied_scores
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    misses = scoring.mark_misses(*tensors, k, share_ties=True)
    np.testing.assert_allclose(misses, count_shared_misses_slowly(scores, labels, k))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("share_ties", [False, True])
def test_misses_without_ties_equal_a_loop(k, share_ties, tied_scores):
    scores, labels = tied_scores
    rng = np.random.default_rng(1)
    distinct = scores + 0.01 * rng.random(scores.shape).astype(np.float32)
    tensors = torch.from_numpy(distinct), torch.from_numpy(labels)
    misses = scoring.mark_misses(*tensors, k, share_ties=share_ties)
    assert float(misses.mean()) == pytest.approx(count_errors_slowly(distinct, labels, k))


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (500, 1003), (10, 10)])
def test_the_interval_of_an_error_is_wilsons(count, n):
    interval = binomtest(count, n).proportion_ci(method="wilson")
    expected = [interval.low, interval.high]
    assert scoring.compute_wilson_interval(count, n) == pytest.approx(expected, abs=1e-9)


def test_an_average_is_weighted():
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 20, 5))
    average = scoring.average_networks([torch.from_numpy(first), torch.from_numpy(second)], [1, 3])
    np.testing.assert_allclose(average, (first + 3 * second) / 4, atol=1e-12)


def test_searched_weights_are_those_of_2012():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 12, 400)
    networks = []
    for skill in (0.02, 0.1, 0.05):
        networks.append(rng.dirichlet(np.ones(12), 400) + skill * np.eye(12)[labels])
    expected = search_weights_slowly(networks, labels)
    found = scoring.search_weights(list(map(torch.from_numpy, networks)), torch.from_numpy(labels))
    assert found == expected
    assert found != [0.5, 0.5, 0.5]


# evaluate.py --------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [0, 1])
def test_ten_views_equal_a_loop_over_views(i, two_runs, pair):
    assert pair.predicted[i].shape == (IMAGES, 5)
    expected = average_ten_views_slowly(load_run(two_runs[i], "best"), range(20))
    np.testing.assert_allclose(pair.predicted[i][:20], expected, atol=1e-5)


def test_results_say_which_runs_and_weights_they_are_of(two_runs, pair):
    assert pair.result["runs"] == list(map(str, two_runs))
    assert pair.result["weights"] == [1.0, 1.0]


@pytest.mark.parametrize("which", ["first", "second", "average"])
def test_errors_equal_a_loop_over_images(which, pair):
    first, second = pair.predicted
    each = pair.result["each"]
    scores, result = {
        "first": (first, each[0]),
        "second": (second, each[1]),
        "average": ((first + second) / 2, pair.result["average"]),
    }[which]
    rates = result["ten views"]
    top1 = count_errors_slowly(scores, pair.labels, 1)
    assert rates["top1_error"] == pytest.approx(top1, abs=1.5 / IMAGES)  # one tie of float32
    assert rates["top5_error"] == 0  # of five classes
    loss = -np.log(scores[range(IMAGES), pair.labels]).mean()
    assert rates["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_errors_of_all_classes_make_the_error(pair):
    lines = (pair.folder / "per-class.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    assert sorted(name for name, *_ in rows) == list("abcde")
    missed = sum(int(images) * float(error) for _, images, error, *_ in rows)
    expected = pair.result["average"]["ten views"]["top1_error"]
    assert missed / IMAGES == pytest.approx(expected, abs=1e-3)


def test_weights_are_searched_on_request(two_runs, run_in_process, tmp_path):
    runs = f"run=[{two_runs[0]},{two_runs[1]}]"
    options = ["weights=search", "share_ties=true", f"hydra.run.dir={tmp_path}"]
    run_in_process("evaluate.py", runs, *options)
    result = read_result(tmp_path)
    assert result["searched"] is True
    assert all(0 <= weight <= 1 for weight in result["weights"])


def test_the_table_has_its_intervals_within_80_columns(two_runs, pair, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_errors(pair.result)
    lines = capsys.readouterr().out.splitlines()
    rates = pair.result["average"]["ten views"]
    low, high = rates["top1_interval"]
    expected = f"{rates['top1_error']:.2%} ({100 * low:.1f}-{100 * high:.1f})"
    (row,) = [line for line in lines if "average" in line and "ten views" in line]
    assert expected in row
    assert len(row) <= 80
    assert f"run 2: {two_runs[1]}" in lines


def test_outputs_that_are_not_finite_end_in_one_line(two_runs, run_in_process, tmp_path, capfd):
    folder = shutil.copytree(two_runs[0], tmp_path / "diverged")
    file = folder / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["net.fc8.bias"].fill_(float("nan"))
    torch.save(checkpoint, file)
    with pytest.raises(SystemExit):
        run_in_process("evaluate.py", f"run={folder}", f"hydra.run.dir={tmp_path / 'out'}")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{file}: the network's outputs are not finite" in line


WRONG_OPTIONS = {
    "device=gpu": "device=gpu can't be used, choose auto, cpu or cuda",
    "weights=[0]": "weights=[0] must be null, search or a number from 0 on for each of 1 runs",
    "weights=[1,2]": "weights=[1, 2] must be null, search or a number from 0 on",
    "weights=half": "weights=half must be",
    "batch_size=0": "batch_size=0 must be greater than 0",
    "run=nowhere": "run=nowhere matches no run folder",
    "what=neighbors queries=1004": "queries=1004 must be from 1 to 1003",
    "what=neighbors nearest=0": "nearest=0 must be greater than 0",
    "what=neighbors nearest=49": "nearest=49 must be from 1 to 48",
    "what=neighbors layer=relu9": "layer=relu9 is unknown; choose one of edge, conv1",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_options_end_in_one_line(options, two_runs, run_in_process, tmp_path, capfd):
    with pytest.raises(SystemExit):
        run_in_process(
            "evaluate.py", f"run={two_runs[0]}", *options.split(), f"hydra.run.dir={tmp_path}"
        )
    (line,) = capfd.readouterr().err.splitlines()
    assert WRONG_OPTIONS[options] in line


def test_runs_on_other_images_are_not_averaged(
    two_runs, small_store, run_in_process, tmp_path, capfd
):
    other_store = shutil.copytree(small_store.folder, tmp_path / "store")
    manifest = other_store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made_of": {', '"made_of": {"size": 1, '))
    other_run = shutil.copytree(two_runs[1], tmp_path / "run")
    config = other_run / "config.yaml"
    config.write_text(config.read_text().replace(str(small_store.folder), str(other_store)))
    with pytest.raises(SystemExit):
        run_in_process("evaluate.py", f"run=[{two_runs[0]},{other_run}]")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"run: {other_run} was validated on other images than {two_runs[0]}" in line


def test_neighbors_equal_a_loop_over_the_training_set(two_runs, run_in_process):
    folder = two_runs[0]
    run_in_process("evaluate.py", f"run={folder}", "what=neighbors", "queries=3", "nearest=4")
    found = json.loads((folder / "checkpoints" / "neighbors.json").read_text())
    run = load_run(folder, "best")
    data = run.data

    def compute_feature(split: str, row: int) -> np.ndarray:
        image = torch.from_numpy(data.store.splits[split].images(np.array([row])))
        with torch.no_grad():
            return compute_features(run.net, "relu7", data.augment.crop_center(image))[0].numpy()

    train = [compute_feature("train", row) for row in range(48)]
    assert len(found["queries"]) == 3
    for query in found["queries"]:
        own = compute_feature("val", query["image"])
        distances = np.array([np.linalg.norm(own - other) for other in train])
        rows = [neighbor["image"] for neighbor in query["nearest"]]
        assert rows == np.argsort(distances)[:4].tolist()
        found_distances = [neighbor["distance"] for neighbor in query["nearest"]]
        np.testing.assert_allclose(found_distances, np.sort(distances)[:4], rtol=1e-4)


def test_neighbors_are_drawn(two_runs, run_in_process):
    run_in_process("evaluate.py", f"run={two_runs[1]}", "what=neighbors", "queries=2", "nearest=2")
    assert (two_runs[1] / "checkpoints" / "neighbors.png").stat().st_size > 1000


# report.py ----------------------------------------------------------------------------------------


def test_a_run_without_its_curves_is_reported(two_runs, run_in_process, tmp_path):
    ignored = shutil.ignore_patterns("tensorboard")
    folder = shutil.copytree(two_runs[0], tmp_path / "run", ignore=ignored)
    run_in_process("report.py", f"runs={folder}", f"hydra.run.dir={tmp_path / 'report'}")
    assert str(folder) in (tmp_path / "report" / "report.html").read_text()


def test_a_run_without_its_data_is_reported(two_runs, run_in_process, tmp_path):
    folder = shutil.copytree(two_runs[0], tmp_path / "run")
    config = folder / "config.yaml"
    store = load_run(folder, "best").data.store.folder
    config.write_text(config.read_text().replace(str(store), str(tmp_path / "moved")))
    run_in_process("report.py", f"runs={folder}", f"hydra.run.dir={tmp_path / 'report'}")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Figure 3" in page
    assert "Figure 4" not in page


def test_a_run_to_show_that_was_not_found_ends_in_one_line(
    two_runs, run_in_process, tmp_path, capfd
):
    options = [f"runs={two_runs[0]}", "show_run=elsewhere", f"hydra.run.dir={tmp_path}"]
    with pytest.raises(SystemExit):
        run_in_process("report.py", *options)
    (line,) = capfd.readouterr().err.splitlines()
    assert "show_run=elsewhere is not one of the finished runs" in line


def test_a_corrupt_result_ends_in_one_line(two_runs, run_in_process, tmp_path, capfd):
    folder = shutil.copytree(two_runs[0], tmp_path / "run")
    (folder / "result.json").write_text('{"final": ')
    with pytest.raises(SystemExit):
        run_in_process("report.py", f"runs={folder}", f"hydra.run.dir={tmp_path / 'report'}")
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{folder / 'result.json'} is corrupt" in line
