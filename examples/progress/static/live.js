// Fetches the page again, each second while something runs, and changes what differs.
let pause = 1000, newest, timer;

function show(page) {
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const shown = document.getElementById(fresh.id);
    if (!shown || shown.isEqualNode(fresh)) continue;
    // The element itself stays, and so does the focus.
    for (const name of shown.getAttributeNames()) {
      if (!fresh.hasAttribute(name)) shown.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) shown.setAttribute(name, value);
    shown.replaceChildren(...fresh.childNodes);
  }
}

async function load(url, options) {
  clearTimeout(timer);
  newest?.abort();
  const own = newest = new AbortController();
  const limit = setTimeout(() => own.abort(), 10_000);
  try {
    const response = await fetch(url, { signal: own.signal, ...options });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    // A page that is not the app's comes from a proxy whose server is gone.
    if (response.status >= 500 || !page.getElementById("problem")) throw new Error();
    show(page);
    pause = 1000;
    if (page.querySelector("[data-running]")) timer = setTimeout(load, pause, location.href);
  } catch {
    if (own !== newest) return;
    const lost = "The server does not answer. This page keeps trying, and goes on by itself.";
    const problem = document.getElementById("problem");
    if (problem.textContent !== lost) problem.textContent = lost;
    pause = Math.min(2 * pause, 30_000);
    timer = setTimeout(load, pause, url, options);
  } finally {
    clearTimeout(limit);
  }
}

document.addEventListener("submit", event => {
  if (!event.target.matches("[data-fetch]")) return;
  const body = new FormData(event.target);
  body.append(event.submitter.name, "");
  event.preventDefault();
  load(event.target.action, { method: "POST", body });
});

// A page that Back brings out of the cache is as old as it was left.
addEventListener("pageshow", event => {
  if (event.persisted) location.reload();
  else if (document.querySelector("[data-running]")) load(location.href);
});
