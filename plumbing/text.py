"""Tables: in Markdown, and in a terminal."""


def markdown_table(header: list[str], rows: list[list[str]], left: int) -> str:
    """A table in Markdown, its columns padded. All but the first `left` are aligned right."""
    columns = []
    for i, cells in enumerate(zip(header, *rows, strict=True)):
        width = max(map(len, cells))
        if i < left:
            rule, cells = "-" * (width + 2), [f" {cell:<{width}} " for cell in cells]
        else:
            rule, cells = "-" * (width + 1) + ":", [f" {cell:>{width}} " for cell in cells]
        columns.append([cells[0], rule, *cells[1:]])
    return "\n".join("|" + "|".join(cells) + "|" for cells in zip(*columns))
