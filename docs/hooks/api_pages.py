"""Pages that are made while the site is built: API reference, examples, files of the root.

A package with an `__all__` gets a page with its docstring and its functions and classes; every
module that it exports gets one as well. Nothing is imported: files are parsed. What is exported
and has no page cannot be, since both are read from the same list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the pages themselves need no mkdocs, and a test reads them
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]


class Package(NamedTuple):
    """What an `__init__.py` exports."""

    name: str
    objects: list[str]
    """Qualified names of functions and classes."""
    modules: list[str]


def file_of(name: str) -> Path | None:
    """The file of a module or package, or None."""
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def read(name: str) -> Package:
    """Parses a package's imports, definitions and `__all__`."""
    file = file_of(name)
    assert file is not None, name
    body = ast.parse(file.read_text()).body
    listed: list[str] = []
    origin: dict[str, str] = {}
    shown: list[str] = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxmethods"):
            for alias in node.names:
                bound = alias.asname or alias.name
                origin[bound] = f"{node.module}.{alias.name}"
                if alias.asname == alias.name:  # `X as X`: exported, though not in __all__
                    shown.append(bound)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            origin[node.name] = f"{name}.{node.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = [ast.literal_eval(each) for each in node.value.elts]  # type: ignore[attr-defined]
    names = list(dict.fromkeys([*listed, *shown]))
    targets = [origin.get(each, f"{name}.{each}") for each in names]
    return Package(
        name,
        [target for target in targets if file_of(target) is None],
        [target for target in targets if file_of(target) is not None],
    )


def packages() -> Iterator[str]:
    """Packages with an `__all__`, the library itself apart."""
    for file in sorted((ROOT / "jaxmethods").rglob("__init__.py")):
        parts = file.relative_to(ROOT).parts[:-1]
        if len(parts) > 1 and "\n__all__ = [" in file.read_text():
            yield ".".join(parts)


def inner_modules(name: str) -> list[str]:
    """Modules of a package without an `__all__`; none of a module."""
    file = file_of(name)
    if file is None or file.name != "__init__.py":
        return []
    return [f"{name}.{inner.stem}" for inner in sorted(file.parent.glob("[a-z]*.py"))]


def owners(found: list[Package], modules: list[str]) -> dict[str, str]:
    """Qualified name of a function or class -> the page that describes it; others link to it."""
    of_module = {inner: name for name in modules for inner in inner_modules(name)}
    of_module |= {name: name for name in modules}
    owned: dict[str, str] = {}
    for package in found:
        for target in package.objects:
            module = target.rpartition(".")[0]
            nearest = [each.name for each in found if target.startswith(f"{each.name}.")]
            home = max(nearest, key=len) if nearest else package.name
            exports = {each.name: each.objects for each in found}
            home = home if target in exports[home] else package.name
            owned.setdefault(target, place(of_module.get(module, home)))
    return owned


def page(package: Package, owned: dict[str, str]) -> str:
    """Markdown of a package's page."""
    short = package.name.removeprefix("jaxmethods.")
    lines = [f"# {short}", "", f"::: {package.name}", "    options:", "      members: false"]
    lines += ["      show_root_heading: false", "      heading_level: 2", ""]
    here = [target for target in package.objects if owned[target] == place(package.name)]
    lines += ["## Exported", ""] if package.modules or package.objects else []
    links = [(name.rpartition(".")[2], place(name)) for name in package.modules]
    links += [(name.rpartition(".")[2], f"{owned[name]}#{name}") for name in package.objects]
    listed = [f"[`{name}`]({url.removeprefix('api/')})" for name, url in sorted(links)]
    lines += [" · ".join(listed), ""]
    for target in here:
        lines += [f"::: {target}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def module_page(name: str, apart: set[str]) -> str:
    """Markdown of a module, or of a package without an `__all__` and its modules; not `apart`."""
    lines = [f"# {name.removeprefix('jaxmethods.')}", "", f"::: {name}", "    options:"]
    lines += ["      show_root_heading: false", "      heading_level: 2", ""]
    for inner in inner_modules(name):
        if inner in apart:
            lines += [f"- [`{inner.removeprefix('jaxmethods.')}`]({place(inner)[4:]})", ""]
            continue
        lines += [f"::: {inner}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def place(name: str) -> str:
    """The path of a page inside of docs/."""
    return f"api/{name.removeprefix('jaxmethods.')}.md"


def pages() -> dict[str, str]:
    """Path inside of docs/ -> Markdown of every page of the reference."""
    with_all = [read(name) for name in packages()]
    listed = {package.name for package in with_all}
    modules = sorted({name for each in with_all for name in each.modules} - listed)
    owned = owners(with_all, modules)
    found = {place(package.name): page(package, owned) for package in with_all}
    found |= {place(name): module_page(name, set(modules)) for name in modules}
    names = {path: path.removeprefix("api/").removesuffix(".md") for path in sorted(found)}
    index = ["# API reference", "", "Everything that a package exports, one page a package and one "
             "for each module that it exports.", ""]  # fmt: skip
    index += [f"{'    ' * name.count('.')}- [`{name}`]({path.removeprefix('api/')})"
              for path, name in names.items()]  # fmt: skip
    return found | {"api/index.md": "\n".join(index) + "\n"}


def project_pages() -> dict[str, str]:
    """Files of the project's root that are pages of the site as well."""
    return {
        f"project/{name.lower()}.md": (ROOT / f"{name}.md").read_text().replace("](docs/", "](../")
        for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")
    }


def example_page() -> dict[str, str]:
    """Every example with what it shows, its command and its code."""
    lines = ["# Examples", "", "Each runs in less than two minutes on a CPU, and in the tests.", ""]
    for file in sorted((ROOT / "docs" / "examples").glob("*.py")):
        code = file.read_text()
        lines += [
            f"## {file.stem.replace('_', ' ').capitalize()}",
            "",
            f"`{file.relative_to(ROOT)}`",
        ]
        lines += ["", "```python", code.rstrip(), "```", ""]
    return {"examples/index.md": "\n".join(lines)}


def generated() -> dict[str, str]:
    """Path inside of docs/ -> Markdown of every page that no file holds."""
    return pages() | project_pages() | example_page()


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the generated pages to the site's files."""
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files
