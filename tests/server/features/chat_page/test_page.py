"""The chat page and its files as they are sent; what they do in a browser is tested in one."""

import hashlib
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import roost.server.features.chat_page
from roost.server.app import create_app
from roost.server.features.chat_page.feature import FILES, ICON
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys

FOLDER = Path(roost.server.features.chat_page.__file__).parent
VENDORED = ("highlight", "marked", "purify", "temml")
OWN_FILES = [path for path in FILES if "/vendor/" not in path]


MAX_BYTES = 112_400
"""Bytes of the page's files without the libraries: it has no framework, and stays light to load and to read."""


class Addresses(HTMLParser):
    """Collects what a document loads, and whether it holds scripts or styles of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("src") or (given.get("href") if tag == "link" else None)
        if address:
            self.loaded.append(address)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


def test_its_files_stay_small() -> None:
    document = (FOLDER / "index.html").stat().st_size
    assert document + sum(len(FILES[path]) for path in OWN_FILES) <= MAX_BYTES


async def test_its_policy_is_strict(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "font-src": "'self'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }
    assert Addresses(response.text).inline == []


async def test_everything_it_loads_is_there(client: httpx.AsyncClient) -> None:
    """Through the document and from script to script, every file is reached."""
    pending = ["/" + address for address in Addresses((await client.get("/")).text).loaded if address[:5] != "data:"]
    reached = set()
    while pending:
        path = pending.pop()
        if path in reached:
            continue
        reached.add(path)
        response = await client.get(path)
        assert response.status_code == 200, path
        imported = re.findall(r"url\('([^':]+)'\)", response.text) if path.endswith(".css") else []
        if path in OWN_FILES:
            imported += re.findall(r'(?:^import .*?|import\(|new URL\()"\./([^"]+)"', response.text, re.MULTILINE)
        pending += [f"{path.rpartition('/')[0]}/{name}" for name in imported]
    assert reached == set(FILES)


@pytest.mark.parametrize("path", FILES)
async def test_its_files_are_kept_for_good(client: httpx.AsyncClient, path: str) -> None:
    """The path changes when a file does, so that an upgrade is seen at once."""
    response = await client.get(path)
    script = "text/javascript; charset=utf-8"
    types = {"css": "text/css; charset=utf-8", "js": script, "mjs": script, "woff2": "font/woff2"}
    assert response.headers["content-type"] == types[path.rpartition(".")[2]]
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert (await client.head(path)).headers["content-length"] == str(len(response.content))


async def test_browsers_find_its_icon_at_once(client: httpx.AsyncClient) -> None:
    """They ask for it beside any address that names none, such as `/docs`."""
    response = await client.get("/favicon.ico")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")
    assert ElementTree.fromstring(response.content).tag == "{http://www.w3.org/2000/svg}svg"
    assert response.content == ICON


async def test_it_names_no_other_place(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text.replace("xmlns='http" + "://www.w3.org/2000/svg'", "")  # a name, not a place
    texts = [page, *(FILES[path].decode() for path in OWN_FILES)]
    for text in texts:
        assert "://" not in text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|@import", text
        )


async def test_it_and_its_files_need_no_key(service: Service) -> None:
    transport = httpx.ASGITransport(create_app(service, Access(ApiKeys(["sesame"]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        for path in ("/", "/favicon.ico", *FILES):
            assert (await client.get(path)).status_code == 200
        folder = next(iter(FILES)).rpartition("/")[0]
        for path in (
            "/load",
            folder,
            f"{folder}/",
            f"{folder}/index.html",
            f"{folder}/vendor/README.md",
            "/chat-page/x/app.js",
        ):
            assert (await client.get(path)).status_code == 401, path
        for path in (f"{folder}/../../load", f"{folder}/%2e%2e/%2e%2e/load", f"{folder}/..%2f..%2fload"):
            assert (await client.get(path)).status_code == 401, path


@pytest.mark.parametrize("path", ["/index.html", "/__init__.py", "/vendor/README.md", "/nothing.js", ""])
async def test_nothing_else_of_the_folder_is_served(client: httpx.AsyncClient, path: str) -> None:
    folder = next(iter(FILES)).rpartition("/")[0]
    assert (await client.get(folder + path)).status_code == 404


def test_the_vendored_libraries_are_what_their_table_says() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (FOLDER / "vendor/README.md").read_text(), re.MULTILINE
    )
    files = [path for path in (FOLDER / "vendor").iterdir() if path.suffix not in (".md", ".txt")]
    assert dict(rows) == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for path in files:
        library = re.split(r"[.-]", path.name.lower())[0]
        assert (FOLDER / "vendor" / f"{library}.LICENSE.txt").stat().st_size > 1000


def test_a_wheel_holds_the_page_and_the_licences(tmp_path: Path) -> None:
    """Collects files as setuptools does."""
    dist = pytest.importorskip("setuptools.dist")
    root = FOLDER.parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("runs in a checkout only")
    distribution = dist.Distribution({"script_name": "setup.py"})
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools calls extension modules in pyproject.toml experimental
        patch.chdir(root)
        distribution.parse_config_files(["pyproject.toml"])
        distribution.get_command_obj("egg_info").egg_base = str(tmp_path)  # other tests read the checkout's
        build = distribution.get_command_obj("build_py")
        build.ensure_finalized()
        collected = {Path(name).as_posix() for name in build.get_outputs(include_bytecode=False)}
    shipped = {
        name.partition("roost/server/features/chat_page/")[2]
        for name in collected
        if "roost/server/features/chat_page/" in name
    }
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert shipped == {name for name in there if "__pycache__" not in name}
    licences = set(distribution.metadata.license_files)
    assert licences >= {f"server/features/chat_page/vendor/{name}.LICENSE.txt" for name in VENDORED}
