"""Measures a finished run: `python evaluate.py run=outputs/train/<run>`."""

from omegaconf import DictConfig

from alexnet.cli import command


@command("evaluate")
def main(config: DictConfig) -> None:
    from alexnet.results.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
