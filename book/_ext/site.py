"""Builds the book's site: a folder per language and a start page that offers them. This is what `make book` calls.

    python book/_ext/site.py build [--open]     build _build/site/{en,zh,vi,fa}/ and _build/site/index.html
    python book/_ext/site.py serve [--port N]   show it at http://127.0.0.1:N

Nothing is executed and nothing is fetched: the notebooks carry their outputs. The languages are built side by side, each
in a process of its own; warnings are errors. A language whose sources have not changed is left as it is.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import html
import http.server
import os
import shutil
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from book_catalogs import translator
from book_languages import BOOK, LANGUAGES, ROOT, Language
from book_toc import language_pages, language_toc, read_toc

BUILD = ROOT / "_build"
SITE = BUILD / "site"
WORK = BUILD / "site-work"  # derived settings, doctrees, logs
TEMPLATES = Path(__file__).resolve().parent / "templates"


def build(*, open_site: bool = False) -> int:
    """Builds the site; 0 if all went well."""
    start = time.perf_counter()
    print(f"building the book in {len(LANGUAGES)} languages", flush=True)
    SITE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(_build_and_report, LANGUAGES))
    shutil.rmtree(SITE / "jupyter_execute", ignore_errors=True)  # a working folder of the notebook reader
    if not all(ok for ok, _ in results):
        return 1
    changed = any(changed for _, changed in results)
    write_root_pages()
    if changed or not (SITE / "pagefind").exists():
        index_for_pagefind()
    print(f"done in {time.perf_counter() - start:.1f} s: {SITE / 'index.html'}", flush=True)
    if open_site and has_screen():
        webbrowser.open((SITE / "index.html").as_uri())
    return 0


def _build_and_report(code: str) -> tuple[bool, bool]:
    """Builds one language if its sources have changed; (went well, was changed)."""
    start = time.perf_counter()
    work = WORK / code
    stamp, digest = work / "digest", source_digest(code)
    if stamp.exists() and stamp.read_text() == digest and (SITE / code / "index.html").exists():
        print(f"  {code}  unchanged", flush=True)
        return True, False
    stamp.unlink(missing_ok=True)
    run = subprocess.run([sys.executable, __file__, "language", code], capture_output=True, text=True, encoding="utf8")
    seconds = time.perf_counter() - start
    if run.returncode:
        shutil.rmtree(work / "doctrees", ignore_errors=True)  # else the next run would not meet the warning again
        print(f"  {code}  FAILED after {seconds:.1f} s\n{run.stdout}{run.stderr}", file=sys.stderr, flush=True)
        return False, True
    stamp.write_text(digest)
    print(f"  {code}  {len(list((SITE / code).glob('*.html')))} pages in {seconds:.1f} s", flush=True)
    return True, True


def build_language(code: str) -> int:
    """Builds the site of one language in this process."""
    from jupyter_book.sphinx import build_sphinx

    work = WORK / code
    work.mkdir(parents=True, exist_ok=True)
    toc = read_toc()
    config = language_config(yaml.safe_load((ROOT / "_config.yml").read_text("utf8")), LANGUAGES[code], work)
    (work / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf8")
    (work / "_toc.yml").write_text(yaml.safe_dump(language_toc(toc, code), allow_unicode=True), "utf8")
    result = build_sphinx(
        BOOK / code,
        SITE / code,
        noconfig=True,
        path_config=work / "_config.yml",
        doctreedir=work / "doctrees",
        confoverrides={"nitpicky": True, "latex_individualpages": False},
        warningiserror=True,
        keep_going=True,
        quiet=True,
    )
    if not isinstance(result, int) or result:
        return 1
    _remove_old_pages(SITE / code, language_pages(toc)[code])
    return 0


def language_config(config: dict[str, Any], language: Language, work: Path) -> dict[str, Any]:
    """The one `_config.yml`, turned into the settings of one language's site."""
    sphinx = config["sphinx"]
    return {
        **config,
        "title": language.title,
        "sphinx": {
            **sphinx,
            "local_extensions": {name: str(ROOT / path) for name, path in sphinx["local_extensions"].items()},
            "config": {
                **sphinx["config"],
                "external_toc_path": str(work / "_toc.yml"),
                "language": language.sphinx,
                "qlab_language": language.code,
            },
        },
    }


def source_digest(code: str) -> str:
    """A hash of all that one language's site is made of."""
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", BOOK / "glossary.csv", BOOK / "references.bib"]
    folders = [BOOK / code, BOOK / "_ext", BOOK / "_static", BOOK / "locale"]
    if "a3_api" in language_pages(read_toc())[code]:  # made from the package's docstrings
        folders.append(ROOT / "qlab")
    for folder in folders:
        found = (path for path in folder.rglob("*") if path.is_file())
        sources += [path for path in found if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)]
    digest = hashlib.sha256(repr([sys.version, *_versions()]).encode())
    for path in sorted(sources):
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _versions() -> Iterator[str]:
    for package in ("sphinx", "jupyter-book", "sphinx-book-theme", "myst-nb", "sphinx-exercise", "jieba"):
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{package} none"


def _remove_old_pages(site: Path, pages: list[str]) -> None:
    """Removes what an earlier build wrote for a page that has left the table of contents."""
    expected = {f"{page}.html" for page in pages} | {"search.html"}
    for path in site.glob("*.html"):
        if path.name not in expected:
            path.unlink()


def write_root_pages() -> None:
    """Writes the start page that offers the languages, the page for a wrong address, and what GitHub Pages wants."""
    template = (TEMPLATES / "root.html.in").read_text("utf8")
    cards = []
    for language in LANGUAGES.values():
        _ = translator(language.code).gettext
        about = _("A book about number formats and quantization, in which every line of code runs.")
        cards.append(
            f'<li><a href="{language.code}/index.html" lang="{language.tag}" dir="{language.direction}">'
            f"<span>{language.name}</span><strong>{html.escape(language.title)}</strong><em>{html.escape(about)}</em></a></li>"
        )
    lost = " · ".join(
        f'<span lang="{language.tag}" dir="{language.direction}">'
        f"{html.escape(translator(language.code).gettext('This page does not exist.'))}</span>"
        for language in LANGUAGES.values()
    )
    page = template.replace("{{cards}}", "\n".join(cards))
    (SITE / "index.html").write_text(page.replace("{{notice}}", ""), "utf8")
    (SITE / "404.html").write_text(page.replace("{{notice}}", f"<p class='notice'>{lost}</p>"), "utf8")
    (SITE / ".nojekyll").touch()
    shutil.copyfile(BOOK / "_static" / "favicon.svg", SITE / "favicon.svg")


def index_for_pagefind() -> None:
    """Makes the index of the live search (used where the site comes by http; without it Sphinx's search remains)."""
    command = [sys.executable, "-m", "pagefind", "--site", str(SITE), "--glob", "{en,zh,vi,fa}/*.html", "--quiet"]
    command += ["--root-selector", "article.bd-article", "--exclude-selectors", ".headerlink, .math, .eqno, script"]
    shutil.rmtree(SITE / "pagefind", ignore_errors=True)
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"  no live search ({reason}); the built-in search works without it", flush=True)


def has_screen() -> bool:
    """Whether somebody may be looking: a desktop, and no automatic build."""
    if os.environ.get("CI"):
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(port: int) -> int:
    """Shows the built site at http://127.0.0.1:<port> until Ctrl+C."""
    if not (SITE / "index.html").exists():
        print("nothing is built yet: run `python book/_ext/site.py build` first", file=sys.stderr)
        return 1
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        print(f"port {port} cannot be used ({error.strerror}); choose another with --port", file=sys.stderr)
        return 1
    with server:
        print(f"the book is at http://127.0.0.1:{server.server_port}/ (Ctrl+C ends this)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="site.py", description="Builds and shows the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build the site into _build/site")
    command.add_argument("--open", action="store_true", help="open it in a browser afterwards, where there is a screen")
    command = commands.add_parser("serve", help="show the built site on this machine")
    command.add_argument("--port", type=int, default=8000)
    command = commands.add_parser("language", help="build one language only (used by build)")
    command.add_argument("code", choices=LANGUAGES)
    options = parser.parse_args(arguments)
    if options.command == "build":
        return build(open_site=options.open)
    if options.command == "serve":
        return serve(options.port)
    return build_language(options.code)


if __name__ == "__main__":
    sys.exit(main())
