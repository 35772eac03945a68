"""Checks of all options before anything slow starts.

The signature of what a group's YAML names in `_target_` is the group's schema: pydantic checks
every value, typed or from a file, against the annotation of its argument. The options that belong
to no group have the dataclasses below. Problems are collected and reported together.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, NamedTuple, cast, get_type_hints

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
# What to say by pydantic's type of error; otherwise its own message is shown.
MESSAGES = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "missing": "has too few values",
    "too_short": "has too few values",
    "too_long": "has too many values",
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
    precision: Literal["32-true", "bf16-mixed"]
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


class Problem(NamedTuple):
    """An option with a wrong value."""

    option: str
    text: str


def find_problems(
    config: DictConfig,
    command: str,
    *,
    lightning: bool,
    compose_defaults: Callable[[], DictConfig] | None = None,
) -> list[str]:
    """What is wrong with the options of a command; none if nothing is.

    Arguments:
        lightning: whether to check the options whose schema needs Lightning, which takes seconds to
            import, or all the others.
        compose_defaults: gives the options without typed values, as examples of right ones.
    """
    try:
        options = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        return [" ".join(str(error).split())]
    options = cast(dict[str, Any], options)
    problems: list[Problem] = []
    if not lightning:
        for key in sorted(OmegaConf.missing_keys(config)):
            problems.append(Problem(key, f"{key} is missing: give {key}=…"))
        problems += _check_root(options, SCHEMAS[command])
    checked: list[Any] = []
    nodes = sorted(_list_targets(options, ""), key=lambda item: item[0].count("."))
    for path, node in nodes:
        target = str(node["_target_"])
        if target.startswith(NEED_LIGHTNING) == lightning and node not in checked:
            problems += _check_node(path, node, target)
            checked.append(node)  # data.augment is augment once more
    if not problems or compose_defaults is None:
        return [problem.text for problem in problems]
    defaults = compose_defaults()
    return [_add_default(problem, defaults) for problem in problems]


def _add_default(problem: Problem, defaults: DictConfig) -> str:
    default = OmegaConf.select(defaults, problem.option)
    if default is None:
        return problem.text
    shown = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
    return f"{problem.text}; the default is {_show(shown)}"


def _show(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value).replace('"', "")


def _check_root(options: dict[str, Any], schema: type, path: str = "") -> list[Problem]:
    problems: list[Problem] = []
    for name, annotation in get_type_hints(schema, include_extras=True).items():
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


def _check_node(path: str, node: dict[str, Any], target: str) -> list[Problem]:
    if not _exists(target):
        text = f"{path}._target_={target} does not exist: give the full name of a class"
        return [Problem(path, text)]
    annotations, takes_others = _read_signature(target)
    problems: list[Problem] = []
    for name, value in node.items():
        is_built = isinstance(value, dict) and "_target_" in value  # checked as a node of its own
        if name.startswith("_") or is_built:
            continue
        if name in annotations:
            problems += _check_value(f"{path}.{name}", value, annotations[name])
        elif not takes_others:
            known = ", ".join(annotations)
            text = f"{path}.{name} is not an option; {path} has {known}"
            problems.append(Problem(path, text))
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
    parameters = signature(built).parameters
    takes_others = any(each.kind == Parameter.VAR_KEYWORD for each in parameters.values())
    try:
        hints = get_type_hints(_find_function(built), include_extras=True)
    except NameError:  # a library's annotation that exists for type checkers alone
        hints = {}
    return {name: hints.get(name, Any) for name in parameters}, takes_others


def _find_function(built: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the arguments: a function itself, or a class's constructor, perhaps inherited."""
    if not isinstance(built, type):
        return built
    owner = next(each for each in built.__mro__ if "__init__" in vars(each))
    constructor: Callable[..., Any] = vars(owner)["__init__"]
    return constructor


def _check_value(path: str, value: Any, annotation: Any) -> list[Problem]:
    if value == "???" or (value is None and path in FILLED_LATER):
        return []  # reported as missing, or not known yet
    if isinstance(value, float) and not math.isfinite(value):
        return [Problem(path, f"{path}={value} must be a finite number")]
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return []  # not an option but an object, such as a network
    try:
        # As JSON, in which a list may be a tuple, while text is not a number.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return _describe(path, value, error, adapter)
    return []


def _describe(
    path: str, value: Any, error: ValidationError, adapter: TypeAdapter[Any]
) -> list[Problem]:
    """`data.threads=0 must be greater than 0 or null`."""
    reasons: list[str] = []
    for problem in error.errors():
        if problem["type"] == "needs_python_object":  # an object, which is not written in YAML
            return []
        reason = MESSAGES.get(problem["type"])
        if reason is None:
            reason = problem["msg"].replace("Input should be", "must be")
        if reason not in reasons:
            reasons.append(reason)
    with suppress(ValidationError):
        adapter.validate_json("null", strict=True)
        reasons.append("null")
    return [Problem(path, f"{path}={_show(value)} {' or '.join(reasons)}")]


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
