"""The suite as a static site, to be read without running it: `python -m vox.book [FOLDER]`, by default in build/book.

    README.md → its links → theirs …      notebooks and texts become pages, folders lists, code pages of source; the rest is copied

Notable choices
- notebooks are shown as they are stored: their pictures and players are in them, and nothing is executed;
- formulas become MathML when a page is made, so that no page has a script or asks for anything from elsewhere;
- the site holds what the front page leads to, however far, so a link that leads nowhere is an error here.
"""

import argparse
import html
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import nbformat
from latex2mathml.converter import convert as mathml
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from vox.files import HOME

LINK = re.compile(r'\b(href|src)="([^"]+)"')
ELSEWHERE = re.compile(r"[a-z]+:|#|//")  # an address, a place on the page, or the file itself as `data:`
TEXTS = {".py", ".yaml", ".yml", ".toml", ".txt", ".json", ".gbnf", ""}  # shown on a page; other files are copied
STYLE = (
    """:root{color-scheme:light dark;--edge:#d9d9d6;--soft:#f3f3ef;--ink:#222;--paper:#fbfbf9;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--edge:#3a3f44;--soft:#23272b;--ink:#ddd;--paper:#181b1e;--link:#7db8f0}}
body{margin:0;display:flex;font:16px/1.55 system-ui,sans-serif;background:var(--paper);color:var(--ink)}
a{color:var(--link)}nav{flex:0 0 13rem;padding:1rem;border-right:1px solid var(--edge);font-size:.9rem}
nav a{display:block;padding:.15rem 0;text-decoration:none}nav a[aria-current]{font-weight:bold}
main{min-width:0;max-width:60rem;flex:1;padding:1rem 2rem}img{max-width:100%;height:auto}main img{background:#fff}
pre{overflow-x:auto;padding:.5rem .8rem;margin:.3rem 0;background:var(--soft);font-size:.85rem;line-height:1.4}
.output_area pre{background:none;border-left:3px solid var(--edge)}.prompt,.anchor-link{display:none}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .8rem;border:1px solid var(--edge);vertical-align:top}
math{font-size:1.1em}math[display=block]{margin:.8rem 0;overflow-x:auto}
.ends{display:flex;justify-content:space-between;margin-top:2rem;border-top:1px solid var(--edge);padding-top:.5rem}
@media(max-width:50rem){body{display:block}nav{border-right:0;border-bottom:1px solid var(--edge)}main{padding:1rem}}
"""
    + HtmlFormatter(style="default").get_style_defs(".highlight")
    + "\n.highlight{background:none}\n@media(prefers-color-scheme:dark){"
    + HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    + ".highlight{background:none}}"
)


# ---- one file ----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """HTML less its tags."""
    return re.sub(r"<[^>]*>", "", text)


class Renderer(IPythonRenderer):
    """Markdown as Jupyter reads it, with formulas as MathML and headings named as on GitHub, so that links to them work in both."""

    def heading(self, text: str, level: int, **attrs) -> str:
        """# text"""
        name = re.sub(r"[^\w -]", "", html.unescape(plain(text)).lower()).strip().replace(" ", "-")
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def block_math(self, body: str) -> str:
        """$$ … $$"""
        return mathml(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        """$ … $"""
        return mathml(body.strip())

    def latex_environment(self, name: str, body: str) -> str:
        """\\begin{name} … \\end{name}"""
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display="block")


def markdown(source: str) -> str:
    """Markdown → HTML."""
    return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


class Exporter(HTMLExporter):
    """A notebook as it is stored; of several forms of an output the picture or the page, never a widget, which needs a kernel."""

    template_name = "basic"

    def default_filters(self):
        """The usual ones but for markdown."""
        yield from super().default_filters()
        yield "markdown2html", markdown


def prepared(notebook, resources):
    """The notebook less the widgets among its outputs; a picture is described by the first paragraph after it."""
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if after is not None and after.cell_type == "markdown":
            paragraph = re.search(r"<p>(.*?)</p>", markdown(after.source), re.S)
            cell.metadata["alt"] = html.unescape(plain(paragraph[1])) if paragraph else ""
    return notebook, resources


EXPORTER = Exporter(exclude_input_prompt=True, exclude_output_prompt=True)
EXPORTER.register_preprocessor(prepared, enabled=True)


def notebook_page(path: Path) -> str:
    """A stored notebook → HTML."""
    return EXPORTER.from_notebook_node(nbformat.read(path, as_version=4))[0]


def source_page(path: Path) -> str:
    """Code or plain text → HTML."""
    text = path.read_text(encoding="utf-8")
    try:
        shown = highlight(text, get_lexer_for_filename(path.name), HtmlFormatter())
    except ClassNotFound:
        shown = f"<pre>{html.escape(text)}</pre>"
    return f"<h1>{html.escape(path.name)}</h1>{shown}"


def folder_page(path: Path) -> str:
    """The list of what is in a folder → HTML."""
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith((".", "__")))
    items = "".join(f'<li><a href="{html.escape(name)}">{html.escape(name)}</a></li>' for name in names)
    return f"<h1>{html.escape(path.name)}</h1><ul>{items}</ul>"


def maker(path: Path) -> Callable[[Path], str] | None:
    """What makes the page of a file or folder; None: it is copied as it is."""
    if path.is_dir():
        return folder_page
    if path.suffix == ".md":
        return lambda path: markdown(path.read_text(encoding="utf-8"))
    if path.suffix == ".ipynb":
        return notebook_page
    return source_page if path.suffix in TEXTS else None


def place(path: Path) -> Path:
    """Where the page of a file or folder lies in the site."""
    if path.is_dir():
        return path / "index.html"
    if path.name == "README.md":
        return path.with_name("index.html")
    if path.suffix in (".md", ".ipynb"):
        return path.with_suffix(".html")
    return path if maker(path) is None else path.with_name(f"{path.name}.html")


# ---- the site ----------------------------------------------------------------------------------------------------------


class Book:
    """The pages under `root`, written to `out` one after another. `course`: the notebooks in reading order."""

    def __init__(self, root: Path, out: Path):
        self.root, self.out, self.lost = root, out, []
        self.course = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))

    def target(self, page: Path, link: str) -> Path | None:
        """The file that a link of a page means; None if it leads out of the repository."""
        folder = page if page.is_dir() else page.parent
        path = Path(os.path.normpath(folder / unquote(link.partition("#")[0])))
        if not path.is_relative_to(self.root):
            return None
        if not path.exists():
            self.lost.append(f"{page.relative_to(self.root)}: {link}")
            return None
        readme = path / "README.md"
        return readme if path.is_dir() and readme.exists() else path

    def link(self, page: Path, path: Path) -> str:
        """The address of a file's page, as seen from another page."""
        return os.path.relpath(place(path), place(page).parent)

    def frame(self, page: Path, body: str) -> str:
        """A body with what is around it: the course on the left, the neighbours below."""
        shown = [(self.root / "README.md", "Front page"), (self.root / "notebooks/README.md", "Map")]
        shown += [(path, path.stem.replace("_", " ")) for path in self.course]
        rows = [f'<a href="{self.link(page, path)}"{" aria-current=page" * (path == page)}>{html.escape(name)}</a>' for path, name in shown]
        ends = ""
        if page in self.course:
            at = self.course.index(page)
            near = [*self.course[max(0, at - 1) : at], *self.course[at + 1 : at + 2]]
            ends = "".join(f'<a href="{self.link(page, path)}">{path.stem.replace("_", " ")}</a>' for path in near)
            ends = f'<div class="ends">{ends}</div>'
        return (
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(page.stem)}</title><style>{STYLE}</style>"
            f"<nav>{''.join(rows)}</nav><main>{body}{ends}</main></html>\n"
        )

    def write(self) -> int:
        """Write everything that the front page, the map and the course lead to. Returns how many pages and copied files.

        Raises ValueError if a link leads to a file that is not there.
        """
        todo = [self.root / "README.md", self.root / "notebooks/README.md", *self.course]
        seen = set(todo)
        for page in todo:  # grows as links are met
            written = self.out / place(page).relative_to(self.root)
            written.parent.mkdir(parents=True, exist_ok=True)
            if not (make := maker(page)):
                shutil.copyfile(page, written)
                continue

            def relink(found, page=page):
                kind, link = found.groups()
                if ELSEWHERE.match(link) or not (path := self.target(page, html.unescape(link))):
                    return found[0]
                if path not in seen:
                    seen.add(path)
                    todo.append(path)
                anchor = link.partition("#")[2]
                return f'{kind}="{self.link(page, path)}{"#" * bool(anchor)}{anchor}"'

            body = make(page) if make is source_page else LINK.sub(relink, make(page))  # code may speak of links and has none
            written.write_text(self.frame(page, body), encoding="utf-8")
        if self.lost:
            raise ValueError("these links lead nowhere: " + "; ".join(self.lost))
        return len(todo)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vox.book", description=__doc__.partition(":")[0])
    parser.add_argument("folder", nargs="?", default="build/book", type=Path)
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    print(Book(HOME, folder).write(), "pages and files; the first page is", folder / "index.html")


if __name__ == "__main__":
    main()
