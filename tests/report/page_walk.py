"""Clicks through a report in headless Chromium; run by hand, it also writes screenshots and times.

python -m tests.report.page_walk report.html shots
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
SHAPES = {
    f"{scheme}-{width}": (scheme, width, height)
    for scheme in ("light", "dark")
    for width, height in ((1440, 900), (390, 844))
}
PAN = """() => new Promise((resolve) => {
  const times = []; let last = performance.now();
  const step = () => {
    const now = performance.now(); times.push(now - last); last = now;
    if (times.length > 30) return resolve(times.slice(1).sort((a, b) => a - b)[15]);
    view.x += 0.002; view.zoom *= 1.01; draw(); requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""
DRAW = """() => { const from = performance.now(); for (let i = 0; i < 20; i++) draw();
  pen.getImageData(0, 0, 1, 1); return (performance.now() - from) / 20; }"""


MIDDLE = """() => { const far = (at) => Math.hypot(place[2 * at] - 0.5, place[2 * at + 1] - 0.5);
  return project(mapped.map((_, at) => at).reduce((best, at) => far(at) < far(best) ? at : best)); }"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own browser, without a window."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, shape: str) -> Iterator[tuple[Page, list[str]]]:
    """The page, and what went wrong in it: console errors, exceptions, anything that it wants to load."""
    scheme, width, height = SHAPES[shape]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    faults: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("data:", "blob:")) or request.url == path.resolve().as_uri()
            else faults.append(request.url)
        ),
    )
    page.goto(path.resolve().as_uri())
    try:
        yield page, faults
    finally:
        context.close()


def centred_map(page: Page) -> dict[str, float]:
    """Where the map is once it stands in the middle of the window."""
    page.evaluate("canvas.scrollIntoView({ block: 'center', behavior: 'instant' })")
    return page.locator("#map").bounding_box()


def walk(page: Page) -> None:
    """Search, zoom, hover, open an item, its neighbours, another item, the other colours."""
    data = json.loads(page.locator("#data").text_content() or "")
    item = int(data["mapped"][len(data["mapped"]) // 2])
    name = data["names"][item]
    shown = page.locator("#item dd")

    page.fill("#search", data["ids"][item])
    expect(page.locator("#hits")).to_have_text("1 item")
    page.press("#search", "Enter")
    expect(shown.first).to_have_text(data["ids"][item])
    page.fill("#search", "")

    box = centred_map(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -800)
    page.wait_for_function("view.zoom > 3")
    page.click("#reset")
    page.wait_for_function("view.zoom === 1")

    x, y = page.evaluate(MIDDLE)
    near = page.evaluate(f"nearestOnMap({x}, {y})")  # another item may lie on the same spot
    box = centred_map(page)
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(page.locator("#tip")).to_be_visible()
    expect(page.locator("#tip div").first).to_have_text(data["names"][near])
    page.mouse.down()
    page.mouse.up()
    expect(shown.first).to_have_text(data["ids"][near])

    cards = page.locator("#neighbours .card")
    expect(cards).to_have_count(page.evaluate(f"{len(data['spaces'])} * 3 * K"))
    title = cards.first.locator("span").last.text_content()
    cards.first.click()
    expect(shown.nth(1)).to_have_text(str(title))
    page.fill("#pick", data["ids"][item])
    page.press("#pick", "Enter")
    expect(shown.nth(1)).to_have_text(name)
    page.click("#random")

    if len(data["columns"]) > 1:
        before = page.locator("#legend").text_content()
        page.select_option("#colour", index=1)
        expect(page.locator("#legend")).not_to_have_text(str(before))
    ground = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != first
    page.click("#theme")
    assert page.evaluate(ground) == first
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"


def main() -> None:
    """Walk a report in every shape, and write screenshots of its parts."""
    report, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for shape in SHAPES:
            with opened(browser, report, shape) as (page, faults):
                paints = "performance.getEntriesByType('paint').map((entry) => [entry.name, entry.startTime])"
                page.wait_for_function("performance.getEntriesByType('paint').length > 1")
                times = {
                    "paint": page.evaluate(paints),
                    "draw": page.evaluate(DRAW),
                    "frame": page.evaluate(PAN),
                }
                page.click("#reset")
                page.screenshot(path=output / f"{report.stem}-{shape}-top.png")
                for part in ("map-section", "gallery", "training", "gates", "recommenders"):
                    if page.locator(f"#{part}").count():
                        page.locator(f"#{part}").screenshot(path=output / f"{report.stem}-{shape}-{part}.png")
                walk(page)
                print(shape, json.dumps(times), faults or "no console errors")
                assert not faults


if __name__ == "__main__":
    main()
