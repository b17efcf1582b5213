"""The static site: every link leads somewhere, formulas are MathML, nothing comes from elsewhere."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from vox import book
from vox.files import HOME

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Addresses(HTMLParser):
    """The links of a page, the addresses of what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.links += [attrs["href"]] if tag == "a" and "href" in attrs else []
        self.loads += [attrs[name] for name in ("src", "href") if name in attrs and tag != "a"]
        assert tag != "script"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    assert book.Book(HOME, folder).write() > 50
    return folder


def test_every_link_of_the_site_leads_to_a_page_and_a_place_on_it(site):
    pages = {path: Addresses(path) for path in site.rglob("*.html")}
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            if link.startswith(("http://", "https://")) and link in page.links or link.startswith("data:"):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            if not target.is_file() or anchor and target in pages and anchor not in pages[target].ids:
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


def test_every_notebook_of_the_course_is_a_page_with_its_pictures_and_formulas(site):
    for path in sorted((HOME / "notebooks").glob("[0-9]*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        notebook = nbformat.read(path, as_version=4)
        pictures = sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
        assert pictures == page.count('src="data:image/png') == len(re.findall(r'<img alt="[^"]{10,}" src="data:image/png', page))
        texts = "".join(re.sub(r"`[^`]*`|```.*?```", "", cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
        assert page.count('display="block"') == len(re.findall(r"\$\$.+?\$\$", texts, re.S)), path.name


def tree(root, **files):
    """A small repository: README.md, the map, one notebook, and more."""
    files = {"README.md": "[map](notebooks/)", "notebooks/README.md": "# Map"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def write(root, out) -> str:
    """The front page of a tree."""
    book.Book(root, out).write()
    return (out / "index.html").read_text(encoding="utf-8")


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    root = tree(tmp_path / "a", **{"README.md": "[here](gone.md) and [there](notebooks/README.md)"})
    with pytest.raises(ValueError, match="README.md: gone.md"):
        book.Book(root, tmp_path / "out").write()


def test_what_is_linked_becomes_a_page_a_list_a_source_or_a_copy(tmp_path):
    front = "[text](a.md#here) [code](b%20c.py) [folder](deep) [bytes](d.bin) ![p](p.png) [out](https://example.org/x.md)"
    files = {"README.md": front, "a.md": "# Here\n$x^2$", "b c.py": 'x = "<a href=\\"gone.md\\">"'}
    files |= {"deep/e.py": "1", "d.bin": "?", "p.png": PNG}
    page = write(tree(tmp_path / "a", **files), tmp_path / "out")
    for link in ("a.html#here", "b c.py.html", "deep/index.html", "d.bin", "p.png", "https://example.org/x.md"):
        assert f'"{link}"' in page, link
    out = tmp_path / "out"
    assert all(part in (out / "a.html").read_text(encoding="utf-8") for part in ("<msup>", 'id="here"'))
    assert (out / "deep/e.py.html").exists() and "e.py.html" in (out / "deep/index.html").read_text(encoding="utf-8")
    assert (out / "d.bin").read_text(encoding="utf-8") == "?"


def test_a_notebook_shows_the_picture_and_not_the_widget(tmp_path):
    output = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "image/png": PNG})
    cells = [nbformat.v4.new_markdown_cell("# One\n$$a_b$$"), nbformat.v4.new_code_cell("1", outputs=[output])]
    root = tree(tmp_path / "a")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks/01_one.ipynb")
    assert 'href="notebooks/01_one.html"' in write(root, tmp_path / "out")
    page = (tmp_path / "out/notebooks/01_one.html").read_text(encoding="utf-8")
    assert "data:image/png" in page and "model_id" not in page and "<msub>" in page and "aria-current" in page


def test_the_command_replaces_the_site(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "HOME", tree(tmp_path / "a"))
    monkeypatch.setattr(sys, "argv", ["book", str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.html").touch()
    book.main()
    assert "2 pages and files" in capsys.readouterr().out and not (tmp_path / "out/old.html").exists()
    assert Path(tmp_path / "out/notebooks/index.html").exists()
