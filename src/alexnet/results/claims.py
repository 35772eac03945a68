"""The paper's claims as data. Which side of a claim a run is on is read from its configuration, never from its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alexnet.results.runs import Run

GOAL = 0.25  # training error of Fig. 1
Side = Callable[[dict[str, Any]], str | None]
Measure = Callable[[Run], float | None]


@dataclass(frozen=True)
class Claim:
    """`paper` and `recorded` are what the paper says and what the authors' logs hold; `figure` the paper's number in
    the unit of ours. `side` names the side a run is on; all others are compared with `reference`. `better` is +1 where
    the paper has a greater measure on the other side. `tuned` options take each side's best value."""

    number: str
    title: str
    paper: str
    recorded: str
    command: str
    figure: float | None = None
    side: Side | None = None
    reference: str = ""
    keys: tuple[str, ...] = ()
    measure: Measure | None = None
    ratio: bool = False
    better: int = 1
    tuned: tuple[str, ...] = ()


def error(run: Run) -> float | None:
    return run.final("val/top1_error")


def train_error(run: Run) -> float | None:
    return run.final("train/top1_error")


def epochs_to_goal(run: Run) -> float | None:
    """Epochs to a training error of `GOAL`, interpolated within the epoch; None if it was never reached."""
    curve = run.curves.get("train/top1_error", [])
    for i, value in enumerate(curve):
        if value <= GOAL:
            before = curve[i - 1] if i else 1.0
            return i + (before - GOAL) / (before - value)
    return None


def epochs_to_converge(run: Run) -> float | None:
    """Epochs until the validation error comes within a point of its least."""
    curve = run.curves.get("val/top1_error", [])
    return next((i + 1.0 for i, value in enumerate(curve) if value <= min(curve) + 0.01), None)


def option(key: str, names: dict[Any, str]) -> Side:
    """The side by the value of an option."""
    return lambda options: names.get(options.get(key))


def activation(options: dict[str, Any]) -> str | None:
    four_layers = str(options["model._target_"]).endswith("CifarConv4")
    return (
        options["model.activation"]
        if four_layers and not options["optimizer.weight_decay"]
        else None
    )


def _towers(options: dict[str, Any]) -> str | None:
    channels = options.get("model.channels", ())
    if options.get("model.towers") == 2 and channels[:4] == (96, 256, 384, 384):
        return "two towers"
    return "one tower" if channels[:4] == (48, 128, 192, 192) else None


def _norm(options: dict[str, Any]) -> str | None:
    if "model.norm" in options:
        return "norm" if options["model.norm"] else "no norm"
    stages = (*options.get("model.stage1", ()), *options.get("model.stage2", ()))
    return ("norm" if "norm" in stages else "no norm") if stages else None


def _crops(options: dict[str, Any]) -> str:
    return "crops" if options["augment.random_crop"] and options["augment.mirror"] else "no crops"


def _layers(options: dict[str, Any]) -> str | None:
    if "model.without" not in options:
        return None
    left_out = options["model.without"]
    return (
        "all layers"
        if left_out is None
        else f"without {'conv' if left_out < 6 else 'fc'}{left_out}"
    )


def _pretrained(options: dict[str, Any]) -> str | None:
    count = len(options.get("model.channels", ()))
    return "CNN" if count == 5 else "CNN*" if count == 6 and options.get("start.run") else None


SWEEP, EVALUATE = "python train.py sweep=claims/", "python evaluate.py run=<run>"
CLAIMS = [
    Claim(
        "C1", "ReLU learns several times faster than tanh (Fig. 1)", "6 × on CIFAR-10, to 25 % training error",
        "no log", SWEEP + "relu_tanh", 6.0, activation, "relu", ("model.activation", "trainer.max_epochs"),
        epochs_to_goal, True,
        tuned=("optimizer.lr",),
    ),
    Claim(
        "C2", "Two towers against one with half of the kernels", "-1.7 top-1, -1.2 top-5", "-1.695, -1.230",
        SWEEP + "one_gpu", 1.7, _towers, "two towers", ("model.towers", "model.channels"), error,
    ),
    Claim(
        "C3", "Response normalization", "-1.4, -1.2; CIFAR-10 13 % to 11 %", "-1.370, -1.152 (three norms)",
        SWEEP + "lrn", 1.4, _norm, "norm", ("model.stage1", "model.stage2", "model.norm"), error,
    ),
    Claim(
        "C4", "Overlapping pooling", "-0.4, -0.3", "-0.394, -0.300", SWEEP + "pooling", 0.4,
        option("model.pool", {(3, 2): "overlapping", (2, 2): "not overlapping"}), "overlapping",
        ("model.pool", "model.paddings"), error,
    ),
    Claim(
        "C5", "Color noise", "more than -1 top-1", "no log", SWEEP + "color_noise", 1.0,
        lambda options: "noise" if options["augment.color_noise"] else "no noise", "noise",
        ("augment.color_noise",), error,
    ),
    Claim(
        "C6", "Without crops and mirror images it overfits", "substantially", "no log", SWEEP + "crops", None, _crops,
        "crops", ("augment.random_crop", "augment.mirror"), error,
    ),
    Claim(
        "C7", "Without dropout it overfits", "substantially", "no log", SWEEP + "dropout", None,
        option("model.dropout", {0.5: "dropout", 0.0: "no dropout"}), "dropout", ("model.dropout",), error,
    ),
    Claim(
        "C7", "Dropout doubles the iterations to converge", "2 ×", "no log", SWEEP + "dropout", 2.0,
        option("model.dropout", {0.5: "dropout", 0.0: "no dropout"}), "no dropout", ("model.dropout",),
        epochs_to_converge, True,
    ),
    Claim(
        "C8", "Any middle layer matters", "about +2 top-1", "no log", SWEEP + "layers", 2.0, _layers, "all layers",
        ("model.without",), error,
    ),
    Claim("C9", "Ten views against the center", "-1.5, -1.3 (2010)", "-1.552, -1.297", EVALUATE, 1.5),
    Claim(
        "C10", "Averaging several nets", "5 nets: -2.6, -1.8 (2012)", "no log",
        SWEEP + "ensemble5, python evaluate.py run=<sweep>/*", 2.6,
    ),
    Claim(
        "C11", "CNN*: a sixth convolution, pre-trained on Fall 2011", "-1.7, -1.6 (2012)", "-1.674, -1.588",
        "python train.py experiment=six_conv start.run=<run>", -1.7, _pretrained, "CNN",
        ("model.channels", "start", "schedule", "optimizer.separate_layers", "augment.color_noise_off", "trainer.max_epochs"),
        error, better=-1,
    ),
    Claim(
        "C12", "Fall 2009, 10,184 classes", "67.4 / 40.9 %", "no log",
        "python train.py experiment=six_conv_2009 start.run=<run>",
    ),
    Claim(
        "C13", "Weight decay lowers the training error", "no figure", "no log", SWEEP + "weight_decay", None,
        lambda options: "decay" if options["optimizer.weight_decay"] else "no decay", "decay",
        ("optimizer.weight_decay",), train_error,
    ),
    Claim("C14", "One tower's kernels are color-blind (Fig. 3)", "in every run", "-", "python report.py"),
    Claim("C15", "Eight images and their likeliest classes (Fig. 4 left)", "image", "-", "python report.py"),
    Claim("C16", "The nearest training images (Fig. 4 right)", "image", "-", EVALUATE + " what=neighbors"),
]  # fmt: skip
