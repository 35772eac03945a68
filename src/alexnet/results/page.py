"""The report as a page: parts in their order, written as HTML and as Markdown."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path

from PIL import Image

from alexnet.results.claims import Claim
from alexnet.results.findings import NOT_RUN, OPPOSITE, REPRODUCED, SHOWN, Finding
from alexnet.results.gallery import Guess

KIND = {REPRODUCED: "reproduced", SHOWN: "reproduced", OPPOSITE: "opposite"}
TITLE = "AlexNet, claim by claim"
INTRO = (
    "Every table, figure and claim of Krizhevsky, Sutskever and Hinton (2012) beside what the runs here came to. "
    "“Direction reproduced” means that the 95 % interval of the difference lies wholly on the paper's side of none, "
    "whatever its size; “not shown” that it does not, or that there is but one run. What was run on a smaller set than "
    "the paper's says so."
)


@dataclass
class Heading:
    text: str

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"

    def markdown(self, folder: Path) -> str:
        return f"## {self.text}"


@dataclass
class Tally:
    """How many claims there are of each verdict."""

    counts: dict[str, int]

    def html(self) -> str:
        items = (
            f'<span class="{KIND.get(v, "other")}"><b>{n}</b>{v}</span>'
            for v, n in self.counts.items()
        )
        return f'<div class="tally">{"".join(items)}</div>'

    def markdown(self, folder: Path) -> str:
        return ", ".join(f"{n} {verdict}" for verdict, n in self.counts.items()) + "."


@dataclass
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f'<div class="scroll"><table>{line(self.head, "th")}{body}</table></div>'

    def markdown(self, folder: Path) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )


@dataclass
class Claims:
    """Each claim with its command, the paper's and the authors' figures and ours."""

    rows: list[tuple[Claim, list[Finding]]]

    def html(self) -> str:
        return "".join(self._claim(claim, many) for claim, many in self.rows)

    @staticmethod
    def _claim(claim: Claim, many: list[Finding]) -> str:
        ours = "".join(
            f'<div>{escape(said(f))} <span class="soft">{escape(f.what)}; {escape(f.where)}, n = {f.n}</span></div>'
            for f in many
        )
        verdicts = dict.fromkeys(f.verdict for f in many) or {NOT_RUN: None}
        shown = "<br>".join(f'<span class="{KIND.get(v, "other")}">{v}</span>' for v in verdicts)
        paper = f"paper: {claim.paper}; authors' log: {claim.recorded}"
        return (
            f'<div class="claim"><b>{claim.number}</b><div class="body"><div class="title">{escape(claim.title)}</div>'
            f'<div class="soft">{escape(paper)}</div>{ours}<div><code>{escape(claim.command)}</code></div></div>'
            f'<div class="verdict">{shown}</div></div>'
        )

    def markdown(self, folder: Path) -> str:
        head = ["", "claim", "paper", "authors' log", "ours", "n", "verdict", "command"]
        rows = []
        for claim, many in self.rows:
            for f in many or [Finding("", "", None, None, "-", NOT_RUN)]:
                ours = f"{said(f)} ({f.what}; {f.where})" if f.what else "-"
                command = f"`{claim.command}`"
                told = (
                    claim.number,
                    claim.title,
                    claim.paper,
                    claim.recorded,
                    ours,
                    f.n,
                    f.verdict,
                    command,
                )
                rows.append(told)
        return Table(head, rows).markdown(folder)


@dataclass
class Drawing:
    """An SVG figure."""

    name: str
    svg: str
    caption: str

    def html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"

    def markdown(self, folder: Path) -> str:
        (folder / f"{self.name}.svg").write_text(self.svg.replace("currentColor", "#555"))
        return f"![{self.caption}](figures/{self.name}.svg)"


@dataclass
class Towers:
    """Fig. 3: a image of kernels for each tower, with its color selectivity."""

    towers: list[tuple[Image.Image, float]]

    def html(self) -> str:
        figures = (
            f'<figure><img alt="kernels of tower {i}" src="{uri(image)}">'
            f"<figcaption>Tower {i}: color selectivity {share:.2f}</figcaption></figure>"
            for i, (image, share) in enumerate(self.towers, 1)
        )
        return f'<div class="towers">{"".join(figures)}</div>'

    def markdown(self, folder: Path) -> str:
        for i, (image, _) in enumerate(self.towers, 1):
            large = image.resize((image.width * 5, image.height * 5), Image.Resampling.NEAREST)
            large.save(folder / f"tower-{i}.png")
        return "\n\n".join(
            f"![tower {i}](figures/tower-{i}.png)\nTower {i}: color selectivity {share:.2f}"
            for i, (_, share) in enumerate(self.towers, 1)
        )


@dataclass
class Guesses:
    """Fig. 4 left."""

    guesses: list[Guess]

    def html(self) -> str:
        return f'<div class="guesses">{"".join(self._guess(guess) for guess in self.guesses)}</div>'

    @staticmethod
    def _guess(guess: Guess) -> str:
        bars = "".join(
            f'<div class="bar{" right" if name == guess.label else ""}"><i style="width:{100 * p:.1f}%"></i>'
            f"<span>{escape(name)}</span></div>"
            for name, p in guess.likeliest
        )
        label = escape(guess.label)
        return f'<figure><img alt="{label}" src="{uri(guess.image)}"><b>{label}</b>{bars}</figure>'

    def markdown(self, folder: Path) -> str:
        rows = []
        for i, guess in enumerate(self.guesses):
            guess.image.save(folder / f"guess-{i}.jpg", quality=88)
            likeliest = ", ".join(f"{name} {p:.0%}" for name, p in guess.likeliest)
            rows.append((f"![{guess.label}](figures/guess-{i}.jpg)", guess.label, likeliest))
        return Table(("image", "class", "likeliest"), rows).markdown(folder)


@dataclass
class Near:
    """Fig. 4 right: rows of a test image and its nearest training images."""

    rows: list[list[Image.Image]]

    def html(self) -> str:
        columns = f"grid-template-columns: 1fr .12fr repeat({len(self.rows[0]) - 1}, 1fr)"
        rows = (
            f'<div class="near" style="{columns}">'
            + "<span></span>".join(
                "".join(f'<img alt="" src="{uri(image)}">' for image in part)
                for part in (row[:1], row[1:])
            )
            + "</div>"
            for row in self.rows
        )
        return "".join(rows)

    def markdown(self, folder: Path) -> str:
        side, gap = 96, 4
        width = (side + gap) * len(self.rows[0]) + 8
        sheet = Image.new("RGB", (width, (side + gap) * len(self.rows)), "white")
        for y, row in enumerate(self.rows):
            for x, image in enumerate(row):
                place = ((side + gap) * x + (8 if x else 0), (side + gap) * y)
                sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), place)
        sheet.save(folder / "nearest.png")
        return "![test images, left, and their nearest training images](figures/nearest.png)"


@dataclass
class Text:
    text: str

    def html(self) -> str:
        return f'<p class="soft">{escape(self.text)}</p>'

    def markdown(self, folder: Path) -> str:
        return self.text


Part = Heading | Tally | Table | Claims | Drawing | Towers | Guesses | Near | Text


def write(parts: Sequence[Part], folder: Path) -> None:
    """report.html, which needs no other file, and report.md with its figures/."""
    style = Path(__file__).with_name("report.css").read_text()
    body = "\n".join(part.html() for part in parts)
    head = f"<h1>{TITLE}</h1><p>{INTRO}</p><p class='soft'>{date.today().isoformat()}</p>"
    (folder / "report.html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{TITLE}</title><style>{style}</style>{head}\n{body}</html>\n"
    )
    (folder / "figures").mkdir(exist_ok=True)
    texts = [part.markdown(folder / "figures") for part in parts]
    (folder / "report.md").write_text(
        "\n\n".join([f"# {TITLE}", INTRO, date.today().isoformat(), *texts]) + "\n"
    )


def said(finding: Finding) -> str:
    """Value, interval and each side's numbers in words."""
    if finding.value is None:
        return finding.numbers or finding.what
    value, ends = f"{finding.value:.2f} ×", [f"{end:.2f}" for end in finding.interval or ()]
    if not finding.ratio:
        value, ends = f"{finding.value:+.2f}", [f"{end:+.2f}" for end in finding.interval or ()]
    interval = f" ({' to '.join(ends)})" if ends else ""
    return value + interval + (f": {finding.numbers}" if finding.numbers else "")


def uri(image: Image.Image) -> str:
    """The image within the page: PNG where it has transparent parts, else JPEG."""
    file, kind = io.BytesIO(), "png" if image.mode == "RGBA" else "jpeg"
    image.save(file, kind, quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
