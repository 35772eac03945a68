"""Every command of the README, shortened."""

import re

import numpy as np
import pytest
from conftest import ROOT, run

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
BY_CI = ("uv ", "python3 -m venv", ".venv/bin/")  # set-up: .ci/run's own commands


@pytest.fixture
def images(tmp_path, small_store):
    from PIL import Image

    shown = np.empty((8, small_store.size, small_store.size, 3), np.uint8)
    small_store.splits["train"].read(np.arange(8), shown)
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for i, image in enumerate(shown):
            Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(BY_CI)])
def test_command(command, here, small, small_store, images, tmp_path):
    quick = ["data.batch_size=8", "trainer.max_epochs=1"]
    narrow = [
        "model.width=0.1",
        "augment.crop=67",
        f"data.folder={small_store.folder}",
        "data.make=null",
    ]
    finished = tmp_path / "finished"
    if "<run>" in command or "<sweep>" in command or "report.py" in command:
        here("train.py", *small, *quick, f"hydra.run.dir={finished}")
    command = command.replace("outputs/sweep/<sweep>", str(tmp_path)).replace(
        "outputs/**", f"{tmp_path}/**"
    )
    command = re.sub(
        r"<folder[^>]*>", str(images), command.replace("outputs/train/<run>", str(finished))
    )
    command = command.replace("folder=outputs/data", f"folder={tmp_path}").replace(
        "size=32", "size=72"
    )
    program, door, *options = command.split()
    if program == "tensorboard":
        assert run("-m", "tensorboard.main", "--inspect", "--logdir", str(tmp_path)).returncode == 0
    elif door != "train.py":
        here(door, *options)
    elif f"resume={finished}" in options:
        here(door, f"resume={finished}", "trainer.max_epochs=2")
    elif "trainer.devices=2" in options or "-m" in options or "sweep=" in command:
        swept = "-m" in options or "sweep=" in command
        place = [
            f"hydra.{'sweep' if swept else 'run'}.dir={tmp_path}",
            *["seed=0"] * ("sweep=" in command),
        ]
        done = run(door, *options, *quick, *narrow, *place, "trainer.accelerator=cpu")
        assert done.returncode == 0, done.stderr
    else:
        options = [option for option in options if "data.folder" not in option]
        here(door, *options, *quick, *narrow, f"hydra.run.dir={tmp_path}")
