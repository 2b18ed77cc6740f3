"""Fonts come from packages, belong to the theme of a run, and a machine with others says so."""

import dataclasses
import importlib.util

import pytest

from render import RenderError, RenderPool, RenderSettings, fonts, theme


def test_the_identity_names_packages_versions_and_contents():
    identity = fonts.identity()
    assert set(identity) == {"matplotlib", "manimgx-fonts", "manimgx-fonts-cjk", "ziamath"}
    assert all(len(known.split()) == 2 and len(known.split()[1]) == 16 for known in identity.values())
    assert fonts.difference(identity, identity) == "" and fonts.difference({}, identity) == ""


def test_another_version_with_the_same_files_is_no_difference():
    digest = fonts.identity()["matplotlib"].split()[1]
    assert fonts.difference({"matplotlib": f"3.9.0 {digest}"}, fonts.identity()) == ""
    others = {"matplotlib": "3.9.0 0123456789abcdef", "lost-fonts": "1.0 0123456789abcdef"}
    line = fonts.difference(others, fonts.identity())
    assert "other fonts (matplotlib, lost-fonts)" in line and "\n" not in line
    assert line.endswith("pip install matplotlib==3.9.0 lost-fonts==1.0")


def test_a_theme_remembers_the_fonts_it_was_drawn_with(caplog):
    settings = RenderSettings(workers=1, cache_mb=0, theme="small")
    remembered = theme.with_theme_text(settings)
    assert theme.theme_css(remembered) == theme.theme_css(settings), (
        "the fonts are no part of the theme itself"
    )
    assert theme.with_theme_text(remembered) == remembered
    other = dataclasses.replace(
        remembered,
        theme_css=remembered.theme_css.replace(fonts.identity()["ziamath"], "0.1 0123456789abcdef"),
    )
    assert theme.with_theme_text(other) == other, "what a run began with stays"
    with caplog.at_level("WARNING", "render"):
        with RenderPool(remembered) as pool:
            page = pool.render(["x"])[0]
        assert "other fonts" not in caplog.text
        with RenderPool(other) as pool:
            assert pool.content_hash("x") == page.content_hash
    assert "other fonts (ziamath)" in caplog.text and "pip install ziamath==0.1" in caplog.text


def test_a_theme_of_an_older_checkpoint_remembers_none():
    assert theme.other_fonts(RenderSettings(theme_css="h1 { color: red }"), {}) == ""
    assert theme.other_fonts(RenderSettings(), {}) == ""


@pytest.mark.parametrize("line", ["{oops}", "{}x", '{"matplotlib": 3}'])
def test_a_line_of_fonts_that_cannot_be_read_is_named(line):
    css = f"h1 {{ color: red }}\n/* drawn with the fonts of {line} */\n"
    if line == "{}x":  # another comment
        assert theme.other_fonts(RenderSettings(theme_css=css), {}) == ""
        return
    with pytest.raises(RenderError, match="theme_css ends in"):
        theme.other_fonts(RenderSettings(theme_css=css), {"matplotlib": "3 0"})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "manimgx_fonts_cjk" else find(name)
    )
    monkeypatch.setattr(fonts, "_folder", fonts._folder.__wrapped__)
    monkeypatch.setattr(fonts, "identity", fonts.identity.__wrapped__)
    with pytest.raises(
        RenderError, match="manimgx-fonts-cjk, which is missing; install it with: pip install"
    ):
        RenderPool(RenderSettings(workers=1))


def test_a_file_that_a_package_lacks_is_named(monkeypatch):
    monkeypatch.setitem(fonts.FAMILIES, "Lost", ("ziamath", "fonts/Lost.ttf"))
    monkeypatch.setattr(fonts, "identity", fonts.identity.__wrapped__)
    with pytest.raises(RenderError, match=r"Lost\.ttf, a font of the pages, is not in the installed ziamath"):
        RenderPool(RenderSettings(workers=1))


def test_a_server_with_other_fonts_is_told(caplog):
    # The server's pool has a test of its own over HTTP; here its answer alone decides.
    import http.server
    import json
    import threading

    from render import RemoteRenderer

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"status": "healthy", "fonts": {"ziamath": "0.1 0123456789abcdef"}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with caplog.at_level("WARNING", "render"):
            with RemoteRenderer(RenderSettings(url=url)):
                assert "other fonts" not in caplog.text, "a theme that remembers none"
            with RemoteRenderer(theme.with_theme_text(RenderSettings(url=url))):
                assert f"the renderer at {url}: pages were drawn with other fonts" in caplog.text
    finally:
        server.shutdown()
