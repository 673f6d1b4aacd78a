// A picture opens large; Escape or the button closes it. Without JavaScript the page is complete.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".picture")) {
  button.addEventListener("click", () => {
    const shown = [...button.children].find((image) => image.offsetParent !== null);
    const large = dialog.querySelector("img");
    large.src = shown.src;
    large.alt = shown.alt;
    large.className = shown.className.replace(/exact|smoothed/, "");
    dialog.querySelector("p").textContent = shown.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
