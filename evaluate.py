"""Measures a finished run: `python evaluate.py run=outputs/train/<run>`."""

import hydra
from omegaconf import DictConfig

import alexnet.entry  # noqa: F401  (registers the resolvers of conf/)


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    from alexnet.results.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
