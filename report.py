"""Ours beside the paper's: `python report.py runs=outputs/**` writes a page with every table, figure and claim."""

from omegaconf import DictConfig

from alexnet.entry import clear_errors, door


@door("report")
def main(cfg: DictConfig) -> None:
    from alexnet.results.report import report

    with clear_errors():
        report(cfg)


if __name__ == "__main__":
    main()
