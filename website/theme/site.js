// For keyboards and screen readers: what scrolls can be reached, and what has a role has a name.
document$.subscribe(() => {
  document.querySelectorAll(".md-search").forEach((box) => box.setAttribute("aria-label", "Search"));
  document.querySelectorAll(".md-code__nav").forEach((bar, number) => bar.setAttribute("aria-label", `Code ${number + 1}`));
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((box) => box.setAttribute("tabindex", "0"));
});
