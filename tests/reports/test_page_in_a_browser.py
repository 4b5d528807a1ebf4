"""The page in headless Chromium, on a telephone and on a desk."""

import json
import os
import re
import shutil
import subprocess

import pytest
from in_tests import PAINT
from matplotlib.figure import Figure
from pages import make_run, page_of
from tiny_models import tiny_llama

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "headless_shell")
BROWSER = os.environ.get("GRADSTEER_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (360, 1280)
# each frame says how wide its page is, what of it needs scripts or the network, and which pictures it shows
MEASURE = """<!doctype html><title>waits</title><body>{frames}<script>
onload = () => {{
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, width = frame.clientWidth;
    const inside = element => element.closest(".scroll, pre");
    return {{
      width, scroll: page.documentElement.scrollWidth, scripts: page.scripts.length, sections: page.querySelectorAll("h2").length,
      outside: [...page.body.querySelectorAll("*")].filter(e => !inside(e) && e.getBoundingClientRect().right > width + 0.5).length,
      pictures: [...page.images].map(image => image.complete && image.naturalWidth > 0),
      tall: page.documentElement.scrollHeight, mark: page.defaultView.getComputedStyle(page.querySelector("mark")).backgroundColor,
    }};
  }}));
}};
</script>"""  # noqa: E501


@pytest.mark.skipif(BROWSER is None, reason="no headless Chromium here (GRADSTEER_BROWSER names one)")
def test_the_page_fits_a_telephone_and_a_desk_in_chromium(tmp_path):
    run = make_run(tmp_path / "run", tiny_llama())
    (run / "figures").mkdir()
    figure = Figure(figsize=(10.6, 4))
    figure.subplots().plot([0, 1])
    pictures = [run / "figures" / f"{name}.png" for name in ("rates-results", "trade-offs", "vectors-sumsq")]
    for path in pictures:
        PAINT(figure, path, dpi=150)
    written, page = page_of(run, pictures=pictures)
    frames = "".join(f'<iframe src="{written.html.as_uri()}" width="{w}" height="900" style="border:0"></iframe>' for w in WIDTHS)  # noqa: E501  # fmt: skip
    (tmp_path / "frames.html").write_text(MEASURE.format(frames=frames))
    options = ["--headless", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    line = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    dom = subprocess.run(line, capture_output=True, text=True, check=True, timeout=100).stdout
    measured = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert [each["width"] for each in measured] == list(WIDTHS)
    for each in measured:
        assert each["scroll"] <= each["width"]
        assert (each["outside"], each["scripts"], each["sections"]) == (0, 0, len(page.headings))
        assert each["pictures"] == [True] * 3
        assert each["mark"] == "rgb(216, 235, 239)"  # its style is there
    assert measured[0]["tall"] > measured[1]["tall"] > 900
