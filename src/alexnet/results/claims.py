"""The paper's claims as data: what the paper says, which command tests it, how findings are made.

Which side of a comparison a run is on is read from its configuration, never from its name. To add a
claim, add an entry to `CLAIMS`; its `find` is a `Comparison`, or a function of `findings.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from alexnet.results import findings
from alexnet.results.comparisons import (
    Comparison,
    count_epochs_to_converge,
    count_epochs_to_goal,
    read_train_error,
)
from alexnet.results.findings import Evidence, Finding
from alexnet.results.runs import Options

SWEEP = "python train.py sweep=claims/"
EVALUATE = "python evaluate.py run=<run>"
REPORT = "python report.py"
TWO_TOWERS = (96, 256, 384, 384)  # channels of conv1 to conv4
ONE_TOWER = (48, 128, 192, 192)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper.

    Arguments:
        paper: what the paper says.
        recorded: what the logs of the authors' 2012 code say.
        paper_value: the paper's number in the unit of ours.
    """

    number: str
    title: str
    paper: str
    recorded: str
    command: str
    find: Callable[[Evidence], list[Finding]]
    paper_value: float | None = None


def find_activation(options: Options) -> str | None:
    """Fig. 1 is of the four-layer CIFAR-10 network without any regularization."""
    is_four_layer = str(options["model._target_"]).endswith("CifarConv4")
    if not is_four_layer or options["optimizer.weight_decay"]:
        return None
    return str(options["model.activation"])


def find_towers(options: Options) -> str | None:
    """Two towers, or one with half of the kernels in conv1 to conv4.

    conv5 is not halved, so that both have about the same number of parameters (§3.2, footnote 1).
    """
    channels = options.get("model.channels", ())[:4]
    if options.get("model.towers") == 2 and channels == TWO_TOWERS:
        return "two towers"
    if channels == ONE_TOWER:
        return "one tower"
    return None


def find_norm(options: Options) -> str | None:
    if "model.norm" in options:  # CIFAR-10's networks
        return "norm" if options["model.norm"] else "no norm"
    stages = (*options.get("model.stage1", ()), *options.get("model.stage2", ()))
    if not stages:
        return None
    return "norm" if "norm" in stages else "no norm"


def find_pooling(options: Options) -> str | None:
    if "model.pool" not in options:
        return None
    sides = {(3, 2): "overlapping", (2, 2): "not overlapping"}  # by size and stride
    return sides.get(options["model.pool"])


def find_color_noise(options: Options) -> str:
    return "noise" if options["augment.color_noise"] else "no noise"


def find_crops(options: Options) -> str:
    has_crops = options["augment.random_crop"] and options["augment.mirror"]
    return "crops" if has_crops else "no crops"


def find_dropout(options: Options) -> str | None:
    if "model.dropout" not in options:
        return None
    sides = {0.5: "dropout", 0.0: "no dropout"}
    return sides.get(options["model.dropout"])


def find_missing_layer(options: Options) -> str | None:
    if "model.without" not in options:
        return None
    number = options["model.without"]
    if number is None:
        return "all layers"
    kind = "conv" if number < 6 else "fc"  # conv1 to conv5, fc6 to fc8
    return f"without {kind}{number}"


def find_pretraining(options: Options) -> str | None:
    convolutions = len(options.get("model.channels", ()))
    if convolutions == 5:
        return "CNN"
    if convolutions == 6 and options.get("start.run"):
        return "CNN*"
    return None


def find_weight_decay(options: Options) -> str:
    return "decay" if options["optimizer.weight_decay"] else "no decay"


RELU_OR_TANH = Comparison(
    find_side=find_activation,
    reference="relu",
    # Runs stop at their goal, so the number of epochs they might take does not matter.
    options=("model.activation", "trainer.max_epochs"),
    # "The learning rates for each network were chosen independently to make training as fast as
    # possible" (Fig. 1).
    tuned=("optimizer.lr",),
    measure=count_epochs_to_goal,
    ratio=True,
)

CLAIMS = [
    Claim(  # §3.1
        number="C1",
        title="ReLU learns several times faster than tanh (Fig. 1)",
        paper="6 × on CIFAR-10, to 25 % training error",
        recorded="no log",
        command=SWEEP + "relu_tanh",
        find=RELU_OR_TANH,
        paper_value=6.0,
    ),
    Claim(  # §3.2
        number="C2",
        title="Two towers against one with half of the kernels",
        paper="-1.7 top-1, -1.2 top-5",
        recorded="-1.695, -1.230",
        command=SWEEP + "one_gpu",
        find=Comparison(
            find_side=find_towers,
            reference="two towers",
            options=("model.towers", "model.channels"),
        ),
        paper_value=1.7,
    ),
    Claim(  # §3.3; also on CIFAR-10, sweep=claims/lrn_cifar
        number="C3",
        title="Response normalization",
        paper="-1.4, -1.2; CIFAR-10 13 % to 11 %",
        recorded="-1.370, -1.152 (three norms)",
        command=SWEEP + "lrn",
        find=Comparison(
            find_side=find_norm,
            reference="norm",
            options=("model.stage1", "model.stage2", "model.norm"),
        ),
        paper_value=1.4,
    ),
    Claim(  # §3.4
        number="C4",
        title="Overlapping pooling",
        paper="-0.4, -0.3",
        recorded="-0.394, -0.300",
        command=SWEEP + "pooling",
        find=Comparison(
            find_side=find_pooling,
            reference="overlapping",
            # Other paddings keep the last map at 6 × 6.
            options=("model.pool", "model.paddings"),
        ),
        paper_value=0.4,
    ),
    Claim(  # §4.1, the second form of data augmentation
        number="C5",
        title="Color noise",
        paper="more than -1 top-1",
        recorded="no log",
        command=SWEEP + "color_noise",
        find=Comparison(
            find_side=find_color_noise, reference="noise", options=("augment.color_noise",)
        ),
        paper_value=1.0,
    ),
    Claim(  # §4.1, the first form
        number="C6",
        title="Without crops and mirror images it overfits",
        paper="substantially",
        recorded="no log",
        command=SWEEP + "crops",
        find=Comparison(
            find_side=find_crops,
            reference="crops",
            options=("augment.random_crop", "augment.mirror"),
        ),
    ),
    Claim(  # §4.2
        number="C7",
        title="Without dropout it overfits",
        paper="substantially",
        recorded="no log",
        command=SWEEP + "dropout",
        find=Comparison(find_side=find_dropout, reference="dropout", options=("model.dropout",)),
    ),
    Claim(  # §4.2
        number="C7",
        title="Dropout doubles the iterations to converge",
        paper="2 ×",
        recorded="no log",
        command=SWEEP + "dropout",
        find=Comparison(
            find_side=find_dropout,
            reference="no dropout",
            options=("model.dropout",),
            measure=count_epochs_to_converge,
            ratio=True,
        ),
        paper_value=2.0,
    ),
    Claim(  # §7
        number="C8",
        title="Any middle layer matters",
        paper="about +2 top-1",
        recorded="no log",
        command=SWEEP + "layers",
        find=Comparison(
            find_side=find_missing_layer, reference="all layers", options=("model.without",)
        ),
        paper_value=2.0,
    ),
    Claim(  # §4.1
        number="C9",
        title="Ten views against the center",
        paper="-1.5, -1.3 (2010)",
        recorded="-1.552, -1.297",
        command=EVALUATE,
        find=findings.compare_views,
        paper_value=1.5,
    ),
    Claim(  # §6, Table 2
        number="C10",
        title="Averaging several nets",
        paper="5 nets: -2.6, -1.8 (2012)",
        recorded="no log",
        command=SWEEP + "ensemble5, python evaluate.py run=<sweep>/*",
        find=findings.compare_averages,
        paper_value=2.6,
    ),
    Claim(  # §6, Table 2
        number="C11",
        title="CNN*: a sixth convolution, pre-trained on Fall 2011",
        paper="-1.7, -1.6 (2012)",
        recorded="-1.674, -1.588",
        command="python train.py experiment=six_conv start.run=<run>",
        find=Comparison(
            find_side=find_pretraining,
            reference="CNN",
            # Pre-trained networks have a schedule of their own.
            options=(
                "model.channels",
                "start",
                "schedule",
                "optimizer.separate_layers",
                "augment.color_noise_off",
                "trainer.max_epochs",
            ),
            better=-1,
        ),
        paper_value=-1.7,
    ),
    Claim(  # §6, tested on a random half of the images
        number="C12",
        title="Fall 2009, 10,184 classes",
        paper="67.4 / 40.9 %",
        recorded="no log",
        command="python train.py experiment=six_conv_2009 start.run=<run>",
        find=findings.report_fall_2009,
    ),
    Claim(  # §5: "not merely a regularizer"
        number="C13",
        title="Weight decay lowers the training error",
        paper="no figure",
        recorded="no log",
        command=SWEEP + "weight_decay",
        find=Comparison(
            find_side=find_weight_decay,
            reference="decay",
            options=("optimizer.weight_decay",),
            measure=read_train_error,
        ),
    ),
    Claim(  # §6.1
        number="C14",
        title="One tower's kernels are color-blind (Fig. 3)",
        paper="in every run",
        recorded="-",
        command=REPORT,
        find=findings.compare_tower_colors,
    ),
    Claim(  # §6.1
        number="C15",
        title="Eight images and their likeliest classes (Fig. 4 left)",
        paper="image",
        recorded="-",
        command=REPORT,
        find=findings.report_guesses,
    ),
    Claim(  # §6.1
        number="C16",
        title="The nearest training images (Fig. 4 right)",
        paper="image",
        recorded="-",
        command=EVALUATE + " what=neighbors",
        find=findings.report_neighbors,
    ),
]
