"""Measures a finished run: `python evaluate.py run=outputs/train/<run>`."""

from omegaconf import DictConfig

from alexnet.entry import door


@door("evaluate")
def main(cfg: DictConfig) -> None:
    from alexnet.results.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
