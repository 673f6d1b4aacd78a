// Tabs: arrow keys, Home and End move between them. Without JavaScript all panels are visible.
const list = document.querySelector(".tabs");
if (list) {
  const tabs = [...list.querySelectorAll("button")];
  const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const open = (tab, focus) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      panel(other).hidden = !chosen;
    }
    if (focus) tab.focus();
  };
  list.setAttribute("role", "tablist");
  for (const tab of tabs) {
    tab.setAttribute("role", "tab");
    panel(tab).setAttribute("role", "tabpanel");
    panel(tab).setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => open(tab));
  }
  list.addEventListener("keydown", (event) => {
    const here = tabs.indexOf(document.activeElement);
    const last = tabs.length - 1;
    const places = { ArrowRight: (here + 1) % tabs.length, ArrowLeft: (here + last) % tabs.length,
      Home: 0, End: last };
    if (!(event.key in places)) return;
    event.preventDefault();
    open(tabs[places[event.key]], true);
  });
  list.hidden = false;
  open(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
}
