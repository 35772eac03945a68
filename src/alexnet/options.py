"""Checks of all options before anything slow starts.

The signature of what a group's YAML names in `_target_` is the group's schema: pydantic checks
every value, typed or from a file, against the annotation of its argument. The options that belong
to no group have the dataclasses below. Problems are collected and reported together.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Interval
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
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
REQUIRED_GROUPS = (
    "trainer",
    "parallel",
    "data",
    "augment",
    "optimizer",
    "schedule",
    "callbacks",
    "logger",
    "model",
)
# null means that the data or the recipe decides; filled in before they are used.
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
    quality: Annotated[int, Interval(ge=1, le=100)]
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
    if not _exists(target):
        return [f"{path}._target_={target} does not exist: give the full name of a class"]
    annotations, takes_others = _read_signature(target)
    problems = []
    for name, value in node.items():
        is_built = isinstance(value, dict) and "_target_" in value  # checked as a node of its own
        if name.startswith("_") or is_built:
            continue
        if name in annotations:
            problems += _check_value(f"{path}.{name}", value, annotations[name])
        elif not takes_others:
            known = ", ".join(annotations)
            problems.append(f"{path}.{name} is not an option; {path} has {known}")
    return problems


def _exists(target: str) -> bool:
    """Whether a module has what is named; an error inside the module is raised."""
    module, _, name = target.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        return False


@cache
def _read_signature(target: str) -> tuple[dict[str, Any], bool]:
    """The annotations of a function's or class's arguments, and whether it takes any others."""
    module, _, name = target.rpartition(".")
    built = getattr(import_module(module), name)
    function: Callable[..., Any] = built.__init__ if isinstance(built, type) else built
    parameters = dict(signature(function).parameters)
    parameters.pop("self", None)
    takes_others = any(each.kind == Parameter.VAR_KEYWORD for each in parameters.values())
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # a library's annotation that exists for type checkers alone
        hints = {}
    return {name: hints.get(name, Any) for name in parameters}, takes_others


def _check_value(path: str, value: Any, annotation: Any) -> list[str]:
    if value == "???" or (value is None and path in FILLED_LATER):
        return []  # reported as missing, or not known yet
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}={value} must be a finite number"]
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return []  # not an option but an object, such as a network
    try:
        # As JSON, in which a list may be a tuple, while text is not a number.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return _describe(path, value, error)
    return []


def _describe(path: str, value: Any, error: ValidationError) -> list[str]:
    """`data.threads=0 must be greater than 0 or null`."""
    reasons: list[str] = []
    for problem in error.errors():
        if problem["type"] == "needs_python_object":  # an object, which is not written in YAML
            return []
        reason = KINDS.get(problem["type"])
        if reason is None:
            reason = problem["msg"].replace("Input should be", "must be")
        if reason not in reasons:
            reasons.append(reason)
    shown = "null" if value is None else str(value).replace("'", "")
    return [f"{path}={shown} {' or '.join(reasons)}"]


def build_object(node: Any, *arguments: Any, **more: Any) -> Any:
    """Builds what a group's `_target_` names; a UserError raised inside comes out as itself."""
    try:
        return instantiate(node, *arguments, **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def explain_missing_group(group: str) -> str:
    remedy = "logger=none trains without one" if group == "logger" else f"choose {group}=<name>"
    return f"{group}=null leaves the run without its {group}; {remedy}"


def find_disabled_groups(config: DictConfig, choices: Mapping[str, Any]) -> list[str]:
    """Groups of train.py and callbacks that were set to null or deleted, and what to do."""
    problems = []
    for group in REQUIRED_GROUPS:
        if choices.get(group) is None or (group in config and config[group] is None):
            problems.append(explain_missing_group(group))
    for name, callback in (config.get("callbacks") or {}).items():
        if callback is None:
            remedy = f"to leave the callback out write '~callbacks.{name}'"
            problems.append(f"callbacks.{name}=null: {remedy}")
    return problems
