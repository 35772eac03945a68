"""Checks of all options before anything slow starts.

The signature of what a group's YAML names in `_target_` is the group's schema: pydantic checks
every value, typed or from a file, against the annotation of its argument. The options that belong
to no group have the dataclasses below. Problems are collected and reported together.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Any, Literal, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
)

from alexnet.errors import UserError

# Importing one of these takes seconds, so their options are checked last.
NEED_LIGHTNING = (
    "lightning.",
    "alexnet.data.datamodule.",
    "alexnet.training.callbacks.",
    "alexnet.training.checkpointing.",
)
# null means that the data and the recipe decide; filled in before they are used.
FILLED_LATER = ("model.num_classes", "trainer.max_epochs")
KINDS = {
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "none_required": "null",
    "missing": "is missing",
}
Device = Literal["auto", "cpu", "cuda"] | str


@dataclass
class StartOptions:
    """`start` of train.py: initial weights from another run."""

    run: str | None
    layers: list[str] | None


@dataclass
class EpochOptions:
    """`epochs` of train.py: how long to train, by data set."""

    shapes: PositiveInt
    other: PositiveInt


@dataclass
class TrainOptions:
    """Those of conf/train.yaml that belong to no group."""

    seed: NonNegativeInt
    resume: str | None
    start: StartOptions
    epochs: EpochOptions
    compile: bool
    fused: bool
    run_folder: str


@dataclass
class EvaluateOptions:
    """conf/evaluate.yaml."""

    run: str | list[str]
    what: Literal["errors", "neighbors"]
    checkpoint: Literal["best", "last"]
    batch_size: PositiveInt | None
    device: str
    weights: Literal["search"] | list[float] | None
    share_ties: bool
    layer: str
    queries: PositiveInt
    nearest: PositiveInt


@dataclass
class PrepareOptions:
    """conf/prepare.yaml."""

    source: str
    folder: str
    labels: str | None
    download: Literal["cifar10", "imagenette"] | None
    size: PositiveInt
    resize: Literal["bicubic", "area"]
    exif: bool
    encoding: Literal["raw", "jpeg"]
    quality: PositiveInt
    max_bad: NonNegativeInt
    verify: bool


@dataclass
class ReportOptions:
    """conf/report.yaml."""

    runs: str | list[str]
    show_run: str | None
    device: str


@dataclass
class BenchmarkOptions:
    """conf/benchmark.yaml."""

    what: Literal["loader", "prepare", "step", "lrn", "augment", "evaluate", "epoch", "end_to_end"]
    net: str
    batch_size: PositiveInt
    precision: str
    compile: bool
    fused: bool
    steps: PositiveInt
    images: PositiveInt
    folder: str
    rounds: PositiveInt


SCHEMAS: dict[str, type] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "prepare": PrepareOptions,
    "report": ReportOptions,
    "benchmark": BenchmarkOptions,
}


def find_problems(config: DictConfig, command: str, lightning: bool) -> list[str]:
    """What is wrong with the options of a command; none if nothing is.

    `lightning` says whether to check the options whose schema needs Lightning, which takes seconds
    to import, or all the others.
    """
    try:
        options = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        return [" ".join(str(error).split())]
    assert isinstance(options, dict)
    problems: list[str] = []
    if not lightning:
        missing = sorted(OmegaConf.missing_keys(config))
        problems += [f"{key} is missing: give {key}=…" for key in missing]
        problems += _check_root(options, SCHEMAS[command])
    for path, node in _list_targets(options, ""):
        target = str(node["_target_"])
        if target.startswith(NEED_LIGHTNING) == lightning:
            problems += _check_node(path, node, target)
    return problems


def _check_root(options: dict[str, Any], schema: type, path: str = "") -> list[str]:
    problems = []
    for name, annotation in get_type_hints(schema).items():
        if name not in options:
            continue
        if is_dataclass(annotation):
            assert isinstance(annotation, type)
            problems += _check_root(options[name], annotation, f"{path}{name}.")
        else:
            problems += _check_value(f"{path}{name}", options[name], annotation)
    return problems


def _list_targets(options: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each mapping that has a `_target_`, with its dotted name."""
    if not isinstance(options, dict):
        return
    if "_target_" in options:
        yield path, options
    for key, value in options.items():
        yield from _list_targets(value, f"{path}.{key}" if path else str(key))


def _check_node(path: str, node: dict[str, Any], target: str) -> list[str]:
    annotations = _read_annotations(target)
    problems = []
    for name, value in node.items():
        is_option = not name.startswith("_") and name in annotations
        is_built = isinstance(value, dict) and "_target_" in value  # checked as a node of its own
        if is_option and not is_built:
            problems += _check_value(f"{path}.{name}", value, annotations[name])
    return problems


@cache
def _read_annotations(target: str) -> dict[str, Any]:
    """The annotations of a function's or class's arguments, by name."""
    built = get_object(target)
    function: Callable[..., Any] = built.__init__ if isinstance(built, type) else built
    hints = get_type_hints(function, include_extras=True)
    named = {
        name
        for name, p in signature(function).parameters.items()
        if p.kind != Parameter.VAR_KEYWORD
    }
    return {name: hint for name, hint in hints.items() if name in named}


def _check_value(path: str, value: Any, annotation: Any) -> list[str]:
    if value == "???" or (value is None and path in FILLED_LATER):
        return []  # reported as missing, or not known yet
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return []  # not an option but an object, such as a network
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}={value} must be a finite number"]
    try:
        # As JSON, in which a list may be a tuple but text is no number.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return [_describe(path, value, error)]
    return []


def build_object(node: Any, *arguments: Any, **more: Any) -> Any:
    """Builds what a group's `_target_` names; a UserError raised inside comes out as itself."""
    try:
        return instantiate(node, *arguments, **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _describe(path: str, value: Any, error: ValidationError) -> str:
    """`data.threads=0 must be greater than 0 or null`."""
    reasons = []
    for problem in error.errors():
        text = KINDS.get(problem["type"], problem["msg"].replace("Input should be", "must be"))
        places = [str(place) for place in problem["loc"] if isinstance(place, int)]
        if places:
            text = f"{text} (at place {'.'.join(places)})"
        if text not in reasons:
            reasons.append(text)
    shown = "null" if value is None else value
    return f"{path}={shown} {' or '.join(reasons)}"


def find_disabled_groups(config: DictConfig, choices: dict[str, Any]) -> list[str]:
    """Groups and callbacks that were set to null or deleted, and how to do what was meant."""
    problems = []
    for group, choice in choices.items():
        if "/" in group or group in ("experiment", "sweep", "recipe"):
            continue
        node = config.get(group)
        if choice is None or not isinstance(node, DictConfig | ListConfig):
            remedy = "choose logger=none" if group == "logger" else f"choose one by {group}=<name>"
            problems.append(f"{group}=null leaves a run without {group}: {remedy}")
    for name, callback in (config.get("callbacks") or {}).items():
        if callback is None:
            problems.append(
                f"callbacks.{name}=null: to leave a callback out write '~callbacks.{name}'"
            )
    return problems
