// Tables that are wider than the page: those with more to see on the right say so (`scrolls-on`),
// and all of them can be scrolled from the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = document.querySelectorAll(
    ".cell_output .text_html, .pst-scrollable-table-container",
  );
  const look = (box) => {
    const left = box.scrollWidth - box.clientWidth;
    box.classList.toggle("scrolls-on", left - box.scrollLeft > 2);
    if (left > 2) box.tabIndex = 0;
  };
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  for (const box of boxes) {
    box.addEventListener("scroll", () => look(box), { passive: true });
    sizes.observe(box);
  }
});
