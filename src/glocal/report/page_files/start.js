// The page from top to bottom.
header();
viewerSection();
lensSection();
neighbourSection();
mapSection();
clusterSection();
chartSection();
viewsSection();
evaluationSection();
settingsSection();

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href").slice(1), link]));
const watch = new IntersectionObserver((entries) => entries.forEach((entry) => links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting)), { rootMargin: "-20% 0px -70% 0px" });
document.querySelectorAll("main section").forEach((part) => watch.observe(part));
