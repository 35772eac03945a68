"""How densely the source is written: `python tests/style.py [folder or file …]`.

Prints the figures of the code and the old words that are left in code, configuration and prose,
each beside its limit, and exits with code 1 if one is exceeded. The limits are the range of nine
well-read PyTorch code bases. They measure how the code reads; they are not its aim.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ("src", "*.py")
PROSE = ("README.md", "CONTRIBUTING.md", "docs", "conf", "src", "*.py")
MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 50
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Network constructors list the layers in their order, which is clearest in one place.
LONG_FUNCTIONS_ALLOWED = {"AlexNet.__init__"}

# Least and greatest value of each figure; per 1,000 non-blank lines if it does not say otherwise.
LIMITS = {
    "nested comprehensions": (0, 1),
    "comprehensions": (0, 25),
    "conditional expressions": (0, 15),
    "walrus": (0, 1.5),
    "multiple assignments": (0, 6),
    "Any": (0, 12),
    "lines beyond 100 columns": (0, 0),
    "comments, %": (5, 10),
    "docstrings, %": (8, 14),
    "long functions": (0, 0),
    "type: ignore": (0, 10),
    "old words": (0, 0),
}
ABSOLUTE = ("lines beyond 100 columns", "long functions", "type: ignore", "old words")

OLD_WORDS = [
    r"\bdoors?\b",
    r"\btorn\b",
    r"\bgo(es)? on\b",
    r"\bbroken off\b",
    r"\bno whole\b",
    r"\bapart\b",
    r"\bwhat .{1,30} came to\b",
    r"\bcame to\b",
    r"\btoday's means\b",
    r"\bis none of\b",
    r"\bcontestants?\b",
    r"\bpictures?\b",
    r"\bcolour",
    r"\bneighbour",
    r"\bforerunner",
    r"\bto the letter\b",
    r"\btreads\b",
    r"\bin place of\b",
    r"\bshall\b",
    r"\bto be had\b",
]


def find_files(patterns: list[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these suffixes that the patterns, relative to the checkout, name or contain."""
    found = []
    for pattern in patterns:
        for place in sorted(ROOT.glob(pattern)):
            inside = sorted(place.rglob("*")) if place.is_dir() else [place]
            found += [file for file in inside if file.suffix in suffixes]
    return found


def count_comment_lines(text: str) -> int:
    """Lines that hold a comment, on its own or behind code; directives to tools do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not re.match(r"# *(type:|noqa|fmt:)", comment) for comment in comments)


def is_nested(node: ast.AST) -> bool:
    """Whether a comprehension has several `for`, or another comprehension inside it."""
    inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
    return len(inner) > 1 or len(node.generators) > 1  # type: ignore[attr-defined]


def is_multiple_assignment(node: ast.AST) -> bool:
    """`a, b = x, y`; unpacking one value is no such assignment."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def list_functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Each function with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from list_functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from list_functions(node, f"{prefix}{node.name}.")


def count_docstring_lines(tree: ast.AST) -> int:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    total = 0
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            text = ast.get_docstring(node) or ""
            total += sum(bool(line.strip()) for line in text.splitlines())
    return total


def measure_file(file: Path) -> Counter[str]:
    """Counts of one file; "lines" are those that are not blank."""
    text = file.read_text()
    tree = ast.parse(text)
    counts: Counter[str] = Counter()
    counts["lines"] = sum(bool(line.strip()) for line in text.splitlines())
    counts["comments, %"] = count_comment_lines(text)
    counts["docstrings, %"] = count_docstring_lines(tree)
    counts["type: ignore"] = text.count("type: ignore")
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_COLUMNS:
            counts["lines beyond 100 columns"] += 1
            report(file, number, f"{len(line)} columns")
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            counts["comprehensions"] += 1
            if is_nested(node):
                counts["nested comprehensions"] += 1
                report(file, node.lineno, "nested comprehension")
        counts["conditional expressions"] += isinstance(node, ast.IfExp)
        counts["walrus"] += isinstance(node, ast.NamedExpr)
        counts["multiple assignments"] += is_multiple_assignment(node)
        counts["Any"] += isinstance(node, ast.Name) and node.id == "Any"
    for name, function in list_functions(tree):
        length = function.end_lineno - function.lineno + 1  # type: ignore[attr-defined]
        if length > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS_ALLOWED:
            counts["long functions"] += 1
            report(file, function.lineno, f"{name} has {length} lines")  # type: ignore[attr-defined]
    return counts


def count_old_words(files: list[Path]) -> int:
    pattern = re.compile("|".join(OLD_WORDS), re.IGNORECASE)
    found = 0
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if "file format" in line:  # a key that stored files have had since before
                continue
            for match in pattern.finditer(line):
                found += 1
                report(file, number, f"old word: {match[0]}")
    return found


def report(file: Path, line: int, problem: str) -> None:
    if "-v" in sys.argv:
        print(f"{file.relative_to(ROOT)}:{line}: {problem}")


def main() -> None:
    given = [argument for argument in sys.argv[1:] if argument != "-v"]
    files = find_files(given or list(SOURCES), (".py",))
    prose = find_files(given or list(PROSE), (".py", ".md", ".yaml"))
    totals: Counter[str] = Counter()
    for file in files:
        totals += measure_file(file)
    totals["old words"] = count_old_words(prose)
    print(f"{len(files)} files, {totals['lines']} non-blank lines")
    exceeded = False
    for name, (least, most) in LIMITS.items():
        value = float(totals[name])
        if name.endswith("%"):
            value *= 100 / totals["lines"]
        elif name not in ABSOLUTE:
            value *= 1000 / totals["lines"]
        ok = least <= round(value, 2) <= most
        exceeded |= not ok
        limit = f"{least} to {most}" if least else f"at most {most}"
        print(f"{name:26} {value:8.2f}   {limit:12} {'' if ok else 'EXCEEDED'}")
    print(
        "(per 1,000 non-blank lines, but for percentages and absolute counts; -v names each place)"
    )
    sys.exit(exceeded)


if __name__ == "__main__":
    main()
