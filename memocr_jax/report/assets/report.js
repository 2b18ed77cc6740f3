"use strict";
const $ = (id) => document.getElementById(id);
if ($("unfold")) {
  const all = document.querySelectorAll("#questions .item, #questions .sample");
  $("unfold").onclick = () => {
    const open = [...all].some((details) => !details.open);
    for (const details of all) details.open = open;
    $("unfold").textContent = open ? "Fold all" : "Unfold all";
  };
}
if ($("kind")) {
  const items = [...document.querySelectorAll("#questions .item")].map((item) => ({
    item, kinds: item.dataset.kinds.split("|"), text: item.firstElementChild.textContent.toLowerCase(),
  }));
  const filter = () => {
    const kind = $("kind").value, words = $("words").value.toLowerCase().split(/\s+/);
    for (const { item, kinds, text } of items)
      item.hidden = !((!kind || kinds.includes(kind)) && words.every((word) => text.includes(word)));
    $("count").textContent = `${items.filter(({ item }) => !item.hidden).length} of ${items.length}`;
  };
  $("kind").oninput = $("words").oninput = filter;
  filter();
}
