"""The documentation holds: its commands run, its links lead somewhere, its figures agree.

Every command of README.md and docs/*.md is run, whether it is a line of a bash block or a code span
in the text. Each is shortened: PLACEHOLDERS and folders are filled in, and options that make it
quick are appended, since the last value of an option counts. NOT_RUN lists the commands that can't
run here, and why.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, RunCommand, make_store, run_command
from PIL import Image

from alexnet.benchmarks import epoch, photographs
from alexnet.data.store import Store

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]

NOT_RUN = {
    "python3 -m venv": "set-up, which .ci/run does",
    "pip install": "set-up",
    "uv run": "set-up",
    "source .venv/bin/activate": "set-up",
    "pytest": "runs these tests",
    "torchrun": "needs two machines; tests/test_launch.py makes two network namespaces",
    "sbatch": "needs SLURM",
    "python tests/gpu.py": "needs a GPU",
}
PROGRAMS = {start.split()[0] for start in NOT_RUN} | {"python", "tensorboard"}
PLACEHOLDERS = {
    "<n>": "0",
    "<devices>": "1",
    "<activation>": "tanh",
    "<lr>": "0.001",
    "<init>": "authors",
    "claims/<name>": "claims/lrn",
}
SHORTER = {
    "train.py": [
        "model.width=0.1",
        "augment.crop=67",
        "data.folder=<store>",
        "data.make=null",
        "data.batch_size=8",
        "trainer.max_epochs=1",
    ],
    "benchmark.py": [
        "net=alexnet_small",
        "batch_size=4",
        "steps=1",
        "rounds=1",
        "images=128",
        "folder=<large store>",
    ],
    "prepare.py": ["size=32"],
    "evaluate.py": [],
    "report.py": [],
}
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def list_commands(page: Path) -> list[str]:
    """The commands of the bash blocks, then those of the code spans in the text."""
    text = page.read_text()
    lines = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    for language, block in BLOCK.findall(text):
        if language == "bash":
            lines += block.replace("\\\n", " ").splitlines()
    commands = [" ".join(line.split(" #")[0].split()) for line in lines]
    return [command for command in commands if is_command(command)]


def is_command(text: str) -> bool:
    words = strip_environment(text.split())
    return len(words) > 1 and words[0] in PROGRAMS


def strip_environment(words: list[str]) -> list[str]:
    """A command without the variables in front of it, such as OMP_NUM_THREADS=1."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def is_run(command: str) -> bool:
    return not any(command.startswith(start) for start in NOT_RUN)


ALL_COMMANDS: list[str] = []
for page in PAGES:
    ALL_COMMANDS += list_commands(page)
COMMANDS = list(dict.fromkeys(filter(is_run, ALL_COMMANDS)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_store: Store) -> Path:
    """A run of the README's first command, shortened."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = " ".join(SHORTER["train.py"]).replace("<store>", str(small_store.folder))
    check_process("train.py", *options.split(), f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, small_store: Store) -> Path:
    """A source for prepare.py: two classes of eight images."""
    folder = tmp_path_factory.mktemp("source")
    pixels = small_store.splits["train"].images(np.arange(8))
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for benchmark.py, whose crops are of 224 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 224, 224, 3), np.uint8)
    split = (pixels, np.arange(12) % 2)
    folder = tmp_path_factory.mktemp("large") / "store"
    return make_store(folder, ["a", "b"], train=split, val=split)


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of conf/ that docs/extending.md shows as examples."""
    folder = tmp_path_factory.mktemp("conf")
    text = (DOCS / "extending.md").read_text()
    for name, content in re.findall(r"`conf/([\w/.]+)`:\n\n```yaml\n(.*?)```", text, re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def folders(
    tmp_path: Path, finished: Path, images: Path, small_store: Store, large_store: Store
) -> dict[str, str]:
    """What stands in for the folders in a command. The run is a copy, since it may be resumed."""
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs / "0")
    return {
        "outputs/train/<run>": f"{runs}/0",
        "outputs/sweep/<sweep>": f"{runs}",
        "outputs/**": f"{runs}/**",
        "--logdir outputs": f"--logdir {runs}",
        "folder=outputs/data/": f"folder={tmp_path}/",
        "<run>": f"{runs}/0",
        "<sweep>": f"{runs}",
        "<store>": f"{small_store.folder}",
        "<large store>": f"{large_store.folder}",
        "<folder>": f"{images}",
        "<folder of CIFAR-10>": f"{images}",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(
    command: str,
    run_in_process: RunCommand,
    folders: dict[str, str],
    presets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = " ".join([command, *shorten(command)])
    for text, value in (PLACEHOLDERS | folders).items():
        command = command.replace(text, value)
    program, *words = strip_environment(shlex.split(command))
    if program == "tensorboard":
        check_process("-m", "tensorboard.main", "--inspect", *words)
        return
    script, *options = words
    if script == "-m":
        check_process(script, *options)
        return
    if script == "train.py":
        options.insert(0, f"--config-dir={presets}")  # Hydra wants it before the options
    if "resume=" not in command:
        options.append(f"hydra.run.dir={tmp_path}/out")
    # What starts processes repeats its command line, which in this process is pytest's.
    if re.search(r" -m | sweep=|trainer.devices=[2-9]", command):
        check_process(script, *options, f"hydra.sweep.dir={tmp_path}/out")
        return
    monkeypatch.setattr(epoch, "EPOCHS_PER_ROUND", {512: 1})  # a million images take half a minute
    for module in (epoch, photographs):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "benchmark")
    with torch.compiler.set_stance("force_eager"):  # the compiler takes minutes
        run_in_process(script, *options)


def shorten(command: str) -> list[str]:
    """What is appended to a command so that it is quick."""
    if "resume=" in command:
        return ["trainer.max_epochs=2"]
    script = command.split(".py")[0].split()[-1] + ".py"
    added = list(SHORTER.get(script, []))
    if re.search("trainer.devices=[2-9]", command):
        added += ["trainer.devices=2", "trainer.accelerator=cpu"]
    if " sweep=" in command:
        added.append("seed=0")
    return added


def check_process(*command: str) -> None:
    finished = run_command(*command)
    assert finished.returncode == 0, finished.stderr


def test_the_commands_that_are_not_run_are_documented() -> None:
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in ALL_COMMANDS), start


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in list_anchors(target), link


def list_anchors(page: Path) -> list[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readmes_figures_stand_in_the_documents() -> None:
    documents = (DOCS / "results.md").read_text() + (DOCS / "performance.md").read_text()
    _, _, table = README.read_text().partition("| ours |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    ours = [row.split("|")[3] for row in rows]
    figures = re.findall(r"\d+\.\d+|\d+ ×", " ".join(ours))
    assert len(figures) > 10
    for figure in figures:
        assert figure in documents
