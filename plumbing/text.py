"""Tables: in Markdown, and in a terminal, where Chinese and accents have widths of their own."""
import itertools
import re
import shutil
import sys
import textwrap
import unicodedata

NARROWEST = 20      # columns of a terminal that a column of a table needs to be readable


def range_of(numbers) -> str:
    """4, 4, 4 -> "4"; 8, 3, 4 -> "3 to 8" """
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def count_noun(n: int, noun: str) -> str:
    """count_noun(1, "run") -> "1 run", count_noun(3000, "run") -> "3,000 runs"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


# ----- Markdown -----------------------------------------------------------------------------------

def markdown_table(header: list[str], rows: list[list[str]], text=()) -> str:
    """A table in Markdown, its columns padded, and aligned right but for the columns of `text`."""
    columns = []
    for cells in zip(header, *rows, strict=True):
        width = max(map(len, cells))
        if cells[0] in text:
            rule, cells = "-" * (width + 2), [f" {cell:<{width}} " for cell in cells]
        else:
            rule, cells = "-" * (width + 1) + ":", [f" {cell:>{width}} " for cell in cells]
        columns.append([cells[0], rule, *cells[1:]])
    return "\n".join("|" + "|".join(cells) + "|" for cells in zip(*columns))


def escape_markdown(text: str, longest: int) -> str:
    """`text` for a cell: no character of it is markup. Cut after `longest` characters."""
    if len(text) > longest:
        text = text[:longest] + " …"
    text = replace_control(text)
    return re.sub(r"([\\`*_|<>~$#\[\]])", r"\\\1", text).replace("\n", "<br>")


# ----- a terminal ---------------------------------------------------------------------------------

# Everything below a space but tab (9), line feed (10) and carriage return (13), which is dropped;
# and 127 to 159. An escape sequence in a text could move the cursor or change the window's title.
CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd")
CONTROL[13] = None


def replace_control(text: str) -> str:
    return text.translate(CONTROL)


def text_width(text: str) -> int:
    """How many columns of a terminal `text` takes. "quả 苹果" takes 3 + 1 + 4 = 8."""
    return sum(map(character_width, text))


def character_width(character: str) -> int:
    """0 for an accent on the letter before it, 2 for wide characters, 苹 or 🍎, 1 for others."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    if unicodedata.east_asian_width(character) in ("W", "F"):
        return 2
    return 1


def wrap_text(text: str, columns: int) -> list[str]:
    """`text` in lines that take at most `columns` columns each. Its own line ends stay."""
    lines = []
    for line in replace_control(text.expandtabs(4)).split("\n"):
        while text_width(line) > columns:
            end = find_break(line, columns)
            lines.append(line[:end].rstrip())
            line = line[end:].lstrip()
        lines.append(line)
    return lines


def find_break(line: str, columns: int) -> int:
    """How many characters of a line that is too long to keep on it.

    The line is broken at its last space that fits. Without one it is broken anywhere, and so it is
    where wide characters would be carried over, because Chinese is written without spaces.
    """
    widths = itertools.accumulate(map(character_width, line))       # of 1, 2, 3 ... characters
    fitting = max(1, sum(width <= columns for width in widths))
    space = line.rfind(" ", 0, fitting + 1)
    if space < 0 or not line[:space].strip():
        return fitting
    carried_over = line[space + 1:fitting + 1]
    has_wide = any(character_width(character) == 2 for character in carried_over)
    return fitting if has_wide else space


def terminal_table(names: list[str], texts: list[str], columns: int, most_lines: int) -> list[str]:
    """The lines of a table of one row, with a column for each name, on a terminal of `columns`.

        base      │ adapter         base     3 + 4 = 8
        ──────────┼──────────       adapter  3 + 4 = 7
        3 + 4 = 8 │ 3 + 4 = 7

    Where a column would be too narrow, the texts stand below each other, as on the right. Of each
    text at most `most_lines` lines are shown.
    """
    width = (columns - 3 * (len(names) - 1)) // len(names)
    if width < NARROWEST:
        return stack_cells(names, texts, columns, most_lines)
    widths = [width] * len(names)
    header = join_cells([wrap_text(name, width) for name in names], widths, " │ ")
    rule = "─┼─".join("─" * width for width in widths)
    cells = [cut_lines(wrap_text(text, width), most_lines) for text in texts]
    return [*header, rule, *join_cells(cells, widths, " │ ")]


def stack_cells(names: list[str], texts: list[str], columns: int, most_lines: int) -> list[str]:
    """Each text to the right of its name, one below the other."""
    left = min(NARROWEST, max(map(text_width, names)))
    right = columns - left - 2
    lines = []
    for name, text in zip(names, texts):
        cells = [wrap_text(name, left), cut_lines(wrap_text(text, right), most_lines)]
        lines += join_cells(cells, [left, right], "  ")
    return lines


def join_cells(cells: list[list[str]], widths: list[int], between: str) -> list[str]:
    """Cells of some lines each, side by side, filled up to their widths."""
    joined = []
    for lines in itertools.zip_longest(*cells, fillvalue=""):
        padded = [line + " " * (width - text_width(line)) for line, width in zip(lines, widths)]
        joined.append(between.join(padded).rstrip())
    return joined


def cut_lines(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most - 1], "…"]


# ----- what is as wide as it is, at a terminal that may be narrower -------------------------------

def print_fitted(text: str):
    """Print lines. At a terminal, those that are too long go on below, indented."""
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        text = "\n".join(hang_line(line, columns) for line in text.split("\n"))
    print(text, flush=True)


def hang_line(line: str, columns: int) -> str:
    """"  name  what it is" -> "  name  what\n      it is"."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, columns, subsequent_indent=indent, break_on_hyphens=False)


def print_markdown(text: str):
    """Print Markdown. At a terminal that is too narrow for its tables it is made to fit."""
    if sys.stdout.isatty():
        text = fit_markdown(text, shutil.get_terminal_size().columns)
    print(text)


def fit_markdown(text: str, columns: int) -> str:
    """`text` in lines of at most `columns`: of a table that is wider, each row becomes a block.

        | arm   | best rate |           arm        r = 8
        | ----- | --------- |           best rate  1.6e-03
        | r = 8 | 1.6e-03   |
    """
    fitted = []
    for in_table, lines in itertools.groupby(text.split("\n"), lambda line: line.startswith("|")):
        lines = list(lines)
        if not in_table:
            fitted += [part for line in lines for part in wrap_text(line, columns)]
        elif max(map(text_width, lines)) <= columns:
            fitted += lines
        else:
            header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                                for line in lines]
            blocks = []
            for row in rows:
                filled = [(name, cell) for name, cell in zip(header, row) if cell]
                blocks.append("\n".join(stack_cells(*zip(*filled), columns, len(text))))
            fitted.append("\n\n".join(blocks))
    return "\n".join(fitted)
