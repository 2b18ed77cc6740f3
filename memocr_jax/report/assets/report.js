"use strict";
const $ = (id) => document.getElementById(id);

$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

const setOpen = (open) => {
  for (const d of document.querySelectorAll("#trajectories details.group, #trajectories details.sample")) d.open = open;
};
if ($("unfold")) {
  $("unfold").onclick = () => setOpen(true);
  $("fold").onclick = () => setOpen(false);
  $("size").onclick = (event) => {
    const on = document.body.classList.toggle("true-size");
    event.currentTarget.setAttribute("aria-pressed", on);
  };
}

const tip = $("tip");
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  let hover = null;
  svg.onpointermove = (event) => {
    hover ??= JSON.parse(figure.dataset.hover);
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let best = 0;
    hover.x.forEach((at, i) => { if (Math.abs(at - x) < Math.abs(hover.x[best] - x)) best = i; });
    cursor.setAttribute("x1", hover.x[best]);
    cursor.setAttribute("x2", hover.x[best]);
    cursor.classList.add("on");
    tip.replaceChildren();
    const head = tip.appendChild(document.createElement("b"));
    head.textContent = hover.heads[best];
    hover.series.forEach((series) => {
      const row = tip.appendChild(document.createElement("span"));
      row.className = "c" + series.colour;
      row.appendChild(document.createElement("i"));
      row.append(series.label + "  " + series.text[best]);
    });
    tip.hidden = false;
    tip.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
  };
  svg.onpointerleave = () => { tip.hidden = true; cursor.classList.remove("on"); };
}
