"""The report as a page: parts in their order, each written as HTML and as Markdown.

report.html needs no other file: figures are inline SVG, images are data URIs. report.md is for
places that show Markdown; its figures are files in figures/, which `to_markdown` writes.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path
from typing import Protocol

from PIL import Image

from alexnet.results.claims import Claim
from alexnet.results.findings import NOT_RUN, OPPOSITE, REPRODUCED, SHOWN, Finding
from alexnet.results.gallery import Guess, Neighbors, TowerKernels

# Of report.css; other verdicts have "other".
CSS_CLASSES = {REPRODUCED: "reproduced", SHOWN: "reproduced", OPPOSITE: "opposite"}
TITLE = "AlexNet, claim by claim"
INTRO = (
    "Every table, figure and claim of Krizhevsky, Sutskever and Hinton (2012) beside the results "
    "of the runs here. “Direction reproduced” means that the 95 % interval of the difference lies "
    "entirely on the paper's side of no difference, whatever its size; “not shown” means that it "
    "does not, or that there is only one run. Results on a smaller data set than the paper's say "
    "so."
)
# Of image files, which Markdown shows at their own size.
KERNEL_ZOOM = 5
NEIGHBOR_SIDE = 96  # pixels


class Part(Protocol):
    def to_html(self) -> str: ...

    def to_markdown(self, figures: Path) -> str:
        """Writes what the text refers to into the folder `figures`."""
        ...


@dataclass
class Heading:
    text: str

    def to_html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"

    def to_markdown(self, figures: Path) -> str:
        return f"## {self.text}"


@dataclass
class Text:
    text: str

    def to_html(self) -> str:
        return f'<p class="soft">{escape(self.text)}</p>'

    def to_markdown(self, figures: Path) -> str:
        return self.text


@dataclass
class Tally:
    """How many claims have each verdict."""

    counts: dict[str, int]

    def to_html(self) -> str:
        items = []
        for verdict, count in self.counts.items():
            if count:
                items.append(f'<span class="{_css_class(verdict)}"><b>{count}</b>{verdict}</span>')
        return f'<div class="tally">{"".join(items)}</div>'

    def to_markdown(self, figures: Path) -> str:
        items = [f"{count} {verdict}" for verdict, count in self.counts.items() if count]
        return ", ".join(items) + "."


@dataclass
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_html(self) -> str:
        head = _join_cells(self.head, "th")
        body = "".join(_join_cells(row, "td") for row in self.rows)
        return f'<div class="scroll"><table>{head}{body}</table></div>'

    def to_markdown(self, figures: Path) -> str:
        lines = []
        for cells in (self.head, ["---"] * len(self.head), *self.rows):
            escaped = [cell.replace("|", "\\|") for cell in cells]  # a bar would end the cell
            lines.append(f"| {' | '.join(escaped)} |")
        return "\n".join(lines)


def _join_cells(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


@dataclass
class ClaimList:
    """Each claim with its command, the paper's and the authors' numbers, and ours."""

    rows: Sequence[tuple[Claim, Sequence[Finding]]]

    def to_html(self) -> str:
        return "".join(self._format_claim(claim, findings) for claim, findings in self.rows)

    @staticmethod
    def _format_claim(claim: Claim, findings: Sequence[Finding]) -> str:
        # Each verdict once, in the order of the findings.
        verdicts = list(dict.fromkeys(finding.verdict for finding in findings)) or [NOT_RUN]
        labels = [f'<span class="{_css_class(verdict)}">{verdict}</span>' for verdict in verdicts]
        paper = f"paper: {claim.paper}; authors' log: {claim.recorded}"
        lines = [
            f'<div class="title">{escape(claim.title)}</div>',
            f'<div class="soft">{escape(paper)}</div>',
        ]
        for finding in findings:
            origin = f"{finding.what}; {finding.where}, n = {finding.n}"
            ours = escape(describe_finding(finding))
            lines.append(f'<div>{ours} <span class="soft">{escape(origin)}</span></div>')
        lines.append(f"<div><code>{escape(claim.command)}</code></div>")
        return (
            f'<div class="claim"><b>{claim.number}</b><div class="body">{"".join(lines)}</div>'
            f'<div class="verdict">{"<br>".join(labels)}</div></div>'
        )

    def to_markdown(self, figures: Path) -> str:
        head = ["", "claim", "paper", "authors' log", "ours", "n", "verdict", "command"]
        rows = []
        for claim, findings in self.rows:
            start = [claim.number, claim.title, claim.paper, claim.recorded]
            command = f"`{claim.command}`"
            for finding in findings:
                ours = f"{describe_finding(finding)} ({finding.what}; {finding.where})"
                rows.append([*start, ours, finding.n, finding.verdict, command])
            if not findings:
                rows.append([*start, "-", "-", NOT_RUN, command])
        return Table(head, rows).to_markdown(figures)


@dataclass
class Drawing:
    """An SVG figure; `name` is its file's."""

    name: str
    svg: str
    caption: str

    def to_html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"

    def to_markdown(self, figures: Path) -> str:
        # A file does not know the page's text color; gray is readable on light and dark.
        (figures / f"{self.name}.svg").write_text(self.svg.replace("currentColor", "#555"))
        return f"![{self.caption}](figures/{self.name}.svg)"


@dataclass
class KernelImages:
    """Fig. 3: the first layer's kernels by tower."""

    towers: Sequence[TowerKernels]

    def to_html(self) -> str:
        images = []
        for i, tower in enumerate(self.towers, 1):
            images.append(
                f'<figure><img alt="kernels of tower {i}" src="{encode_image(tower.image)}">'
                f"<figcaption>{self._describe(i, tower)}</figcaption></figure>"
            )
        return f'<div class="towers">{"".join(images)}</div>'

    def to_markdown(self, figures: Path) -> str:
        texts = []
        for i, tower in enumerate(self.towers, 1):
            size = (KERNEL_ZOOM * tower.image.width, KERNEL_ZOOM * tower.image.height)
            large = tower.image.resize(size, Image.Resampling.NEAREST)
            large.save(figures / f"tower-{i}.png")
            texts.append(f"![tower {i}](figures/tower-{i}.png)\n{self._describe(i, tower)}")
        return "\n\n".join(texts)

    @staticmethod
    def _describe(number: int, tower: TowerKernels) -> str:
        return f"Tower {number}: color selectivity {tower.selectivity:.2f}"


@dataclass
class GuessList:
    """Fig. 4 left: images above bars of their likeliest classes, the right one in pink."""

    guesses: Sequence[Guess]

    def to_html(self) -> str:
        return f'<div class="guesses">{"".join(map(self._format_guess, self.guesses))}</div>'

    @staticmethod
    def _format_guess(guess: Guess) -> str:
        bars = []
        for name, probability in guess.likeliest:
            css_class = "bar right" if name == guess.label else "bar"
            width = f"{100 * probability:.1f}%"
            bars.append(
                f'<div class="{css_class}"><i style="width:{width}"></i>'
                f"<span>{escape(name)}</span></div>"
            )
        label = escape(guess.label)
        image = f'<img alt="{label}" src="{encode_image(guess.image)}">'
        return f"<figure>{image}<b>{label}</b>{''.join(bars)}</figure>"

    def to_markdown(self, figures: Path) -> str:
        rows = []
        for i, guess in enumerate(self.guesses):
            guess.image.save(figures / f"guess-{i}.jpg", quality=88)
            likeliest = ", ".join(f"{name} {p:.0%}" for name, p in guess.likeliest)
            rows.append([f"![{guess.label}](figures/guess-{i}.jpg)", guess.label, likeliest])
        return Table(["image", "class", "likeliest"], rows).to_markdown(figures)


@dataclass
class NeighborRows:
    """Fig. 4 right: each validation image, a gap, then its nearest training images."""

    rows: Sequence[Neighbors]

    def to_html(self) -> str:
        columns = f"grid-template-columns: 1fr .12fr repeat({self._count_nearest()}, 1fr)"
        rows = []
        for row in self.rows:
            query = _format_thumbnail(row.query)
            nearest = "".join(map(_format_thumbnail, row.nearest))
            rows.append(f'<div class="near" style="{columns}">{query}<span></span>{nearest}</div>')
        return "".join(rows)

    def to_markdown(self, figures: Path) -> str:
        pitch = NEIGHBOR_SIDE + 4
        gap = 8  # between a query and its neighbors
        width = pitch * (1 + self._count_nearest()) + gap
        sheet = Image.new("RGB", (width, pitch * len(self.rows)), "white")
        for y, row in enumerate(self.rows):
            sheet.paste(_shrink(row.query), (0, pitch * y))
            for x, image in enumerate(row.nearest, 1):
                sheet.paste(_shrink(image), (pitch * x + gap, pitch * y))
        sheet.save(figures / "nearest.png")
        return "![test images, left, and their nearest training images](figures/nearest.png)"

    def _count_nearest(self) -> int:
        return len(self.rows[0].nearest)


def _format_thumbnail(image: Image.Image) -> str:
    return f'<img alt="" src="{encode_image(image)}">'


def _shrink(image: Image.Image) -> Image.Image:
    return image.resize((NEIGHBOR_SIDE, NEIGHBOR_SIDE), Image.Resampling.BICUBIC)


def write_page(parts: Sequence[Part], folder: Path) -> None:
    """Writes report.html, and report.md with its figures/."""
    today = date.today().isoformat()
    style = Path(__file__).with_name("report.css").read_text()
    body = "\n".join(part.to_html() for part in parts)
    (folder / "report.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{TITLE}</title><style>{style}</style>"
        f"<h1>{TITLE}</h1><p>{INTRO}</p><p class='soft'>{today}</p>\n{body}</html>\n"
    )
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    texts = [f"# {TITLE}", INTRO, today, *(part.to_markdown(figures) for part in parts)]
    (folder / "report.md").write_text("\n\n".join(texts) + "\n")


def describe_finding(finding: Finding) -> str:
    """`+1.20 (+0.70 to +1.70): dropout 40.10 %, no dropout 41.30 %`."""
    if finding.value is None:
        return finding.numbers or finding.what
    text = f"{finding.value:.2f} ×" if finding.ratio else f"{finding.value:+.2f}"
    if finding.interval:
        low, high = finding.interval
        text += f" ({low:.2f} to {high:.2f})" if finding.ratio else f" ({low:+.2f} to {high:+.2f})"
    if finding.numbers:
        text += f": {finding.numbers}"
    return text


def encode_image(image: Image.Image) -> str:
    """The image as a data URI: PNG if it has transparent pixels, else JPEG."""
    kind = "png" if image.mode == "RGBA" else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _css_class(verdict: str) -> str:
    return CSS_CLASSES.get(verdict, "other")
