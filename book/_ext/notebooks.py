"""Write, translate and execute the book's notebooks.

    notebooks.py text  NOTEBOOK            print a notebook as text that is easy to edit
    notebooks.py weave TEXT NOTEBOOK       make a notebook of such a text
    notebooks.py run   [NOTEBOOK ...]      execute notebooks (all, unless named) and store their outputs
    notebooks.py stale                     name translated cells that are older than their English ones

The text holds cells, each under a line ``%% markdown ID`` or ``%% code ID [TAG ...]``. A translation's text needs the
markdown cells only: code comes from the English notebook of the same name, and every cell gets the hash of the English
cell it was made from. Outputs are stored without counts and times, so that executing again changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

BOOK = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "zh", "vi", "fa")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
MEASURED = "nbval-ignore-output"  # outputs that differ from run to run: translations show the English ones


def source_hash(cell: NotebookNode) -> str:
    """Return the hash by which a translated cell names the English cell it was made from."""
    return hashlib.sha256(cell.source.encode()).hexdigest()[:16]


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook beside its place and move it there."""
    nbformat.validate(notebook)
    beside = path.with_suffix(".tmp")
    beside.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
    beside.replace(path)


def english_of(path: Path) -> Path | None:
    """Return the English notebook that a notebook translates; None for an English one."""
    language = path.resolve().parent.name
    return None if language == "en" or language not in LANGUAGES else path.resolve().parents[1] / "en" / path.name


def to_text(notebook: NotebookNode) -> str:
    """Return a notebook as text."""
    parts = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", []) if cell.cell_type == "code" else []
        parts.append(" ".join(["%%", cell.cell_type, cell.id, *tags]) + "\n" + cell.source.strip("\n") + "\n")
    return "\n".join(parts)


def parse(text: str) -> list[NotebookNode]:
    """Return the cells of a text."""
    cells: list[NotebookNode] = []
    for part in ("\n" + text).split("\n%% ")[1:]:
        head, _, body = part.partition("\n")
        kind, name, *tags = head.split()
        make = {"markdown": new_markdown_cell, "code": new_code_cell}[kind]
        cells.append(make(body.strip("\n"), id=name, metadata={"tags": tags} if tags else {}))
    return cells


def weave(text: str, path: Path) -> NotebookNode:
    """Make a notebook of a text, for the place `path`, keeping the outputs of code that has not changed."""
    cells, english = parse(text), english_of(path)
    old = {c.id: c for c in read(path).cells} if path.exists() else {}
    if english is not None:
        words = {c.id: c for c in cells if c.cell_type == "markdown"}
        model = read(english).cells
        missing = [c.id for c in model if c.cell_type == "markdown" and c.id not in words]
        extra = sorted(set(words) - {c.id for c in model})
        if missing or extra:
            raise SystemExit(f"{path}: no translation of {missing}; not in the English notebook: {extra}")
        cells = []
        for source in model:
            cell = words[source.id] if source.cell_type == "markdown" else new_code_cell(source.source, id=source.id)
            cell.metadata = {**source.metadata, "qlab": {"source_hash": source_hash(source)}}
            cells.append(cell)
    for cell in cells:
        before = old.get(cell.id)
        if cell.cell_type == "code" and before is not None and before.source == cell.source:
            cell.outputs = before.outputs
    return new_notebook(cells=cells, metadata=KERNEL)


def execute(path: Path) -> None:
    """Execute a notebook in its folder and store its outputs, stripped of what differs from run to run."""
    from nbclient import NotebookClient

    notebook = read(path)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    english = english_of(path)
    language = path.parent.name
    measured = {c.id: _translated(c.outputs, language) for c in read(english).cells if _is_measured(c)} if english else {}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = measured.get(cell.id) or _merged(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            output.pop("transient", None)
    notebook.metadata = NotebookNode(KERNEL)
    write(notebook, path)


def _translated(outputs: list[NotebookNode], language: str) -> list[NotebookNode]:
    """Put a measured table's headings into another language; its plain text begins with the keys of the columns."""
    from qlab.show.language import label

    for output in outputs:
        for key in output.data["text/plain"].splitlines()[0].split():
            english, words = (f">{label(f'column.{key}', of)}</th>" for of in ("en", language))
            output.data["text/html"] = output.data["text/html"].replace(english, words)
    return outputs


def _merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join what was printed in several pieces, which are cut by chance."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _is_measured(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and MEASURED in cell.metadata.get("tags", [])


def stale(paths: Iterable[Path]) -> list[str]:
    """Return the translated cells whose English cell has changed since."""
    found = []
    for path in paths:
        if english := english_of(path):
            model = {c.id: source_hash(c) for c in read(english).cells}
            for cell in read(path).cells:
                if cell.metadata.get("qlab", {}).get("source_hash") != model.get(cell.id):
                    found.append(f"{path.parent.name}/{path.name}: {cell.id}")
    return found


def all_notebooks() -> list[Path]:
    """Return the notebooks of the book, English first."""
    return [path for language in LANGUAGES for path in sorted((BOOK / language).glob("*.ipynb"))]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["text", "weave", "run", "stale"])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    if options.action == "text":
        print(to_text(read(options.files[0])), end="")
    elif options.action == "weave":
        text, path = options.files
        write(weave(text.read_text(encoding="utf-8"), path), path)
    elif options.action == "run":
        paths = [p.resolve() for p in options.files] or all_notebooks()
        groups = [[p for p in paths if english_of(p) is None], [p for p in paths if english_of(p)]]
        with ThreadPoolExecutor(2) as pool:
            for group in groups:
                for path, _ in zip(group, pool.map(execute, group), strict=True):
                    print(f"{path.parent.name}/{path.name}", flush=True)
    else:
        found = stale(all_notebooks())
        print("\n".join(found) or "all translations are up to date")
        return int(bool(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
