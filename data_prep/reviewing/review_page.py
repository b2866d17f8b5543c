"""The page on which a person judges pairs: one HTML file that needs nothing beside it and asks nothing of the network.

Everything from a post is escaped, and besides the page's policy runs one script only, known by its hash: what a caption
holds cannot run. The browser saves the verdicts as a file of lines that `verdicts` reads; a rejection is said of the
image too, and so of every other pair that shows it.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable

from data_prep.reviewing.review_items import Item, describe_scores, image_id, small_image

_SIDE = 360  # of a picture, pixels

_STYLE = """
:root { --keep: #1b7f4b; --reject: #b3261e; --line: #d5d5dd; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: #1d1d24; background: #f4f4f7; }
header { position: sticky; top: 0; z-index: 1; background: #fff; border-bottom: 1px solid var(--line);
  padding: 10px 20px; }
header p { margin: 4px 0; }
.private { color: var(--reject); font-weight: 600; }
kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 5px; background: #f4f4f7; font: inherit; }
main { max-width: 980px; margin: 18px auto; padding: 0 16px; }
article { display: flex; gap: 18px; background: #fff; border: 1px solid var(--line); border-left: 6px solid var(--line);
  border-radius: 6px; padding: 14px; margin-bottom: 14px; scroll-margin-top: 110px; }
article:focus { outline: 3px solid #3d6fd9; }
article.keep { border-left-color: var(--keep); }
article.reject { border-left-color: var(--reject); }
figure { margin: 0; flex: 0 0 360px; text-align: center; }
figure img { max-width: 100%; }
.words { flex: 1; min-width: 0; }
.about { color: #63636e; font-size: 13px; overflow-wrap: anywhere; margin: 0 0 8px; }
textarea { width: 100%; box-sizing: border-box; min-height: 120px; font: inherit; padding: 8px; }
button { font: inherit; padding: 5px 14px; border: 1px solid var(--line); border-radius: 4px; background: #fff;
  cursor: pointer; }
.keep button[data-act=keep] { background: var(--keep); color: #fff; }
.reject button[data-act=reject] { background: var(--reject); color: #fff; }
@media (max-width: 700px) { article { flex-direction: column; } figure { flex-basis: auto; } }
"""

_SCRIPT = """
"use strict";
const cards = [...document.querySelectorAll("article")];
let at = 0, saved = true;
function count() {
  const kept = cards.filter(c => c.classList.contains("keep")).length;
  const rejected = cards.filter(c => c.classList.contains("reject")).length;
  document.getElementById("count").textContent =
    kept + " kept, " + rejected + " rejected, " + (cards.length - kept - rejected) + " open";
}
function go(index) {
  at = Math.max(0, Math.min(cards.length - 1, index));
  cards[at].focus();
  cards[at].scrollIntoView({block: "start"});
}
function judge(card, verdict) {
  card.classList.remove("keep", "reject");
  if (verdict) card.classList.add(verdict);
  saved = false;
  count();
}
cards.forEach((card, index) => {
  card.addEventListener("focusin", () => { at = index; });
  card.querySelectorAll("button").forEach(button => button.addEventListener("click", () => {
    judge(card, button.dataset.act);
    go(index + 1);
  }));
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "TEXTAREA") {
    if (event.key === "Escape") cards[at].focus();
    return;
  }
  const acts = {
    k: () => { judge(cards[at], "keep"); go(at + 1); },
    r: () => { judge(cards[at], "reject"); go(at + 1); },
    u: () => judge(cards[at], ""),
    e: () => cards[at].querySelector("textarea").focus(),
    j: () => go(at + 1), ArrowDown: () => go(at + 1),
    i: () => go(at - 1), ArrowUp: () => go(at - 1),
    s: save,
  };
  if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
});
function save() {
  const lines = [];
  for (const card of cards) {
    const keep = card.classList.contains("keep");
    if (!keep && !card.classList.contains("reject")) continue;
    const text = card.querySelector("textarea");
    const caption = text.value.trim() === text.defaultValue.trim() ? null : text.value.trim();
    const source = document.body.dataset.source;
    lines.push(JSON.stringify({id: card.dataset.id, keep: keep, caption: caption, reason: "", source: source}) + "\\n");
    if (!keep) {
      const image = {id: card.dataset.image, keep: false, caption: null, reason: "", source: source};
      lines.push(JSON.stringify(image) + "\\n");
    }
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {type: "application/jsonl"}));
  link.download = "verdicts.jsonl";
  link.click();
  saved = true;
}
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", event => { if (!saved) event.preventDefault(); });
count();
"""


def make_page(items: Iterable[Item], *, title: str, source: str) -> bytes:
    """Return the page, UTF-8.

    Args:
        items: Pairs in the order to show them.
        title: What they are.
        source: The field of the verdicts, "human" or "human:NAME".
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    cards = "\n".join(_card(item) for item in items)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="robots" content="noindex">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body data-source="{html.escape(source)}">
<header>
<p class="private">Private: do not share. It holds posts and images that may show people. Delete it after use.</p>
<p><strong>{html.escape(title)}</strong>: <span id="count"></span> <button id="save">Save verdicts</button></p>
<p><kbd>k</kbd> keep <kbd>r</kbd> reject <kbd>u</kbd> undo <kbd>e</kbd> edit the caption (<kbd>Esc</kbd> ends)
<kbd>j</kbd> next <kbd>i</kbd> previous <kbd>s</kbd> save</p>
</header>
<main>
{cards}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""
    return page.encode("utf-8", "replace")  # broken input holds lone surrogates


def _card(item: Item) -> str:
    pair = item.pair
    about = ", ".join(part for part in (pair.source, item.reason or "kept", describe_scores(pair)) if part)
    return f"""<article tabindex="0" data-id="{html.escape(pair.id)}" data-image="{html.escape(image_id(pair))}">
<figure>{_picture(item)}</figure>
<div class="words">
<p class="about">{html.escape(pair.id)}<br>{html.escape(about)}</p>
<textarea aria-label="caption" spellcheck="false">
{html.escape(pair.caption)}</textarea>
<p><button data-act="keep">Keep</button> <button data-act="reject">Reject</button></p>
</div>
</article>"""


def _picture(item: Item) -> str:
    image = small_image(item, _SIDE)
    if image is None:
        return "the image cannot be read"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="">'
