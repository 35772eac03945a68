"""Writes every table, figure and claim beside the paper's: `python report.py runs=outputs/**`."""

from omegaconf import DictConfig

from alexnet.cli import command


@command("report")
def main(config: DictConfig) -> None:
    from alexnet.results.report import report

    report(config)


if __name__ == "__main__":
    main()
