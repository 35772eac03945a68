"""Measures a finished run: `python evaluate.py run=outputs/train/<run>`."""

import hydra
from omegaconf import DictConfig

from alexnet.entry import check_options


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    check_options(cfg)
    from alexnet.results.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
