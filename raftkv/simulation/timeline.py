"""A run as a picture: one lane per member, its role in colour, messages as arrows, faults as bands, commits as ticks.

One file without anything from elsewhere: the data as JSON, and a little script that draws what is in view.
"""

import json

from raftkv.simulation.options import Options
from raftkv.simulation.run import Result
from raftkv.simulation.scheduler import SECOND
from raftkv.simulation.trace import Trace

MAX_MESSAGES = 60_000


def timeline(options: Options, result: Result, log: Trace) -> str:
    """A page that shows the run."""
    data = {
        "seed": options.seed,
        "nodes": options.nodes,
        "seconds": result.seconds,
        "violation": result.violation,
        "roles": [[_seconds(when), member, role, term] for when, member, role, term in log.role_changes],
        "messages": [[_seconds(when), a, b, kind] for when, a, b, kind in log.messages[:MAX_MESSAGES]],
        "faults": [[_seconds(when), kind, member, round(length, 3)] for when, kind, member, length in log.faults],
        "commits": [_seconds(when) for when in log.commits],
    }
    # "</" would end the script.
    encoded = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return _PAGE.replace("__DATA__", encoded).replace("__SEED__", str(options.seed))


def _seconds(when: int) -> float:
    return round(when / SECOND, 5)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>raftkv sim, seed __SEED__</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 1rem; background: #fff; color: #222 }
svg { width: 100%; border: 1px solid #ccc; user-select: none; cursor: grab }
.key span { padding: 0 .5em; margin-right: .5em }
#violation { color: #b00020; font-weight: bold }
label { margin-right: 1em }
</style></head><body>
<h1>raftkv sim, seed __SEED__</h1>
<p id="violation"></p>
<p class="key"><span style="background:#cfd8dc">follower</span><span style="background:#ffe082">pre-candidate</span>
<span style="background:#ffb74d">candidate</span><span style="background:#81c784">leader</span>
<span style="background:#ffcdd2">fault</span></p>
<p><label><input type="checkbox" id="beats"> heartbeats</label> Wheel: zoom. Drag: move. <span id="view"></span></p>
<svg id="picture" height="600"></svg>
<script>
const data = __DATA__;
const colours = {follower: "#cfd8dc", "pre-candidate": "#ffe082", candidate: "#ffb74d", leader: "#81c784"};
const svg = document.getElementById("picture"), beats = document.getElementById("beats");
const lane = 90, top0 = 50;
let from = 0, to = Math.min(data.seconds, 5);
document.getElementById("violation").textContent = data.violation;
svg.setAttribute("height", top0 + lane * data.nodes + 20);
function put(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text) {
    if (name === "text") element.textContent = text;
    else element.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "title")).textContent = text;
  }
  svg.appendChild(element);
}
function draw() {
  svg.replaceChildren();
  const width = svg.clientWidth, x = t => (t - from) / (to - from) * width, y = m => top0 + lane * m + 30;
  document.getElementById("view").textContent = from.toFixed(3) + " s to " + to.toFixed(3) + " s";
  for (const [t, kind, member, length] of data.faults) {
    if (t + length < from || t > to) continue;
    const all = member < 0;
    put("rect", {x: x(t), width: Math.max(2, x(t + length) - x(t)), y: all ? top0 - 8 : y(member) - 28,
      height: all ? lane * data.nodes : 56, fill: "#ffcdd2", opacity: .6}, kind);
    put("text", {x: x(t) + 2, y: all ? top0 - 12 : y(member) - 18, "font-size": 11, fill: "#b00020"}, kind);
  }
  for (let member = 0; member < data.nodes; member++) {
    const own = data.roles.filter(change => change[1] === member);
    own.forEach(([t, , role, term], place) => {
      const end = place + 1 < own.length ? own[place + 1][0] : data.seconds;
      if (end < from || t > to) return;
      put("rect", {x: x(t), width: Math.max(1, x(end) - x(t)), y: y(member) - 7, height: 14,
        fill: colours[role] || "#eee"}, role + ", term " + term);
      if (x(end) - x(t) > 40)
        put("text", {x: Math.max(0, x(t)) + 3, y: y(member) + 4, "font-size": 10}, role + " " + term);
    });
    put("text", {x: 2, y: y(member) + 24, "font-weight": "bold"}, "m" + member);
  }
  for (const t of data.commits) if (t >= from && t <= to) {
    put("line", {x1: x(t), x2: x(t), y1: top0 - 6, y2: top0 + 2, stroke: "#2e7d32"}, "an entry is committed");
  }
  let drawn = 0;
  for (const [t, a, b, kind] of data.messages) {
    if (t < from || t > to || a < 0 || b < 0 || (!beats.checked && kind.startsWith("Heartbeat"))) continue;
    if (++drawn > 3000) break;
    const vote = kind.startsWith("RequestVote"), stroke = vote ? "#e65100" : "#1565c0";
    const end = x(t) + Math.max(4, width / (to - from) * .001), sign = b > a ? -7 : 7;
    put("line", {x1: x(t), y1: y(a), x2: end, y2: y(b) + sign, stroke, opacity: .5}, kind);
    put("circle", {cx: end, cy: y(b) + sign, r: 2, fill: stroke}, kind);
  }
  const step = Math.pow(10, Math.floor(Math.log10((to - from) / 4)));
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
    put("text", {x: x(t), y: 14, "font-size": 11, fill: "#666"}, t.toFixed(Math.max(0, -Math.log10(step))) + " s");
  }
}
svg.addEventListener("wheel", event => {
  event.preventDefault();
  const at = from + (to - from) * event.offsetX / svg.clientWidth, factor = event.deltaY > 0 ? 1.25 : .8;
  from = Math.max(0, at - (at - from) * factor);
  to = Math.min(data.seconds, at + (to - at) * factor);
  draw();
});
let held = null;
svg.addEventListener("mousedown", event => held = event.clientX);
window.addEventListener("mouseup", () => held = null);
window.addEventListener("mousemove", event => {
  if (held === null) return;
  const moved = (held - event.clientX) / svg.clientWidth * (to - from);
  held = event.clientX;
  if (from + moved >= 0 && to + moved <= data.seconds) { from += moved; to += moved; draw(); }
});
beats.addEventListener("change", draw);
window.addEventListener("resize", draw);
draw();
</script></body></html>
"""
