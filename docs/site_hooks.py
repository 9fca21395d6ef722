"""Hooks of mkdocs: the documents of the root are pages of the site, and links between them hold.

On GitHub the documents link to each other, and to figures and files of the repository, by relative
paths. Here the same links are turned to the pages, or to copies of the files.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "kernels/README.md": "kernels.md",
}
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
# ":class:`~adazeta.x.Y`" in a docstring, as HTML.
ROLE = re.compile(r":\w+:<code>~?(?:[\w.]+\.)?(\w+)(\(\))?</code>")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/, and the files that any page links to."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "api.md", content=api()))
    for document in [*PAGES, *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]:
        for target in targets(document):
            path = ROOT / target
            uri = place(target)
            if path.is_file() and path.suffix != ".md" and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn the links of a document of the repository to where the site has their targets."""
    uri = page.file.src_uri
    source = next((name for name, to in PAGES.items() if to == uri), f"docs/{uri}")

    def turned(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        return f"{before}{posixpath.relpath(place(target), posixpath.dirname(uri) or '.')}{after}"

    return LINK.sub(turned, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show the cross references of docstrings as the names they end in."""
    return ROLE.sub(r"<code>\1\2</code>", html)


def targets(document: str) -> list[str]:
    """Return the paths from the root that a document links to."""
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [match[2] for match in LINK.finditer(text) if "://" not in match[2]]
    folder = posixpath.dirname(document)
    return [posixpath.normpath(posixpath.join(folder, link)) for link in links]


def place(target: str) -> str:
    """Return where the site has a file of the repository, both as paths from their roots."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}"


def api() -> str:
    """Return the page of the public names, in the order of the packages' own lists."""
    lines = ["# API", "", "## adazeta", ""]
    lines += [f"::: adazeta.{name}" for name in public_names()]
    lines += ["", "## adazeta.kernels", ""]
    lines += [f"::: {module}.{name}" for module, name in kernel_names()]
    return "\n\n".join(lines) + "\n"


def public_names() -> list[str]:
    """Return the keys of ``_API`` in ``adazeta/__init__.py``, which is not imported for it."""
    tree = ast.parse((ROOT / "adazeta" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_API":
            return list(ast.literal_eval(node.value))
    raise LookupError("adazeta/__init__.py has no _API")


def kernel_names() -> list[tuple[str, str]]:
    """Return module and name of each op that ``adazeta/kernels.py`` imports from kernels/."""
    tree = ast.parse((ROOT / "adazeta" / "kernels.py").read_text(encoding="utf-8"))
    found = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adazeta.kernels."):
            module = str(node.module).removeprefix("adazeta.")
            found += [(module, alias.name) for alias in node.names]
    return found
