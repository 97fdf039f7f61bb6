"""What the tests of the book share: the site, built once for all workers, and a server that shows it."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Lets one process at a time through; a lock older than ten minutes was left behind by one that died."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            if lock.exists() and time.time() - lock.stat().st_mtime > 600:
                lock.unlink(missing_ok=True)
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site. What has not changed since the last build is not built again."""
    pytest.importorskip("jupyter_book", reason="the book's tools are not installed: pip install '.[book]'")
    with only_one(ROOT / "_build" / "site.lock"):
        command = [sys.executable, str(ROOT / "book" / "_ext" / "site.py"), "build"]
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf8", timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return ROOT / "_build" / "site"


@pytest.fixture(scope="session")
def pages(site: Path) -> list[Path]:
    """All pages of the site, without the templates that the themes leave in _static."""
    return sorted(page for page in site.rglob("*.html") if not {"_static", "pagefind"} & set(page.parts))


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The site's address on a server of this machine, which runs as long as the tests."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
