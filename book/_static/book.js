// The book's own script: prepares MathJax, and puts a live search on top of Sphinx's where the site comes by http.
"use strict";

// MathJax measures the words in a formula (\text{...}): in the page's font, once that has arrived. Its menu speaks only
// English and would look for files that are not here.
if (window.MathJax) {
  const given = window.MathJax;
  window.MathJax = {
    ...given,
    options: { ...given.options, enableMenu: false },
    svg: { mtextInheritFont: true, fontCache: "global" },
    startup: { pageReady: () => document.fonts.ready.then(() => MathJax.startup.defaultPageReady()) },
  };
}

// From a file Sphinx's search cannot read the pages it has found to quote from them; it lists their titles.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

const words = JSON.parse(document.getElementById("qlab-words")?.textContent ?? "{}");

/** Shows pagefind's results under a search field while one types. */
function liveSearch(form, pagefind, onPage) {
  const field = form.querySelector("input[name=q]");
  const list = document.createElement("div");
  list.className = "qlab-results";
  list.setAttribute("aria-live", "polite");
  form.after(list);

  async function update() {
    const query = field.value.trim();
    if (!query) return list.replaceChildren();
    const search = await pagefind.debouncedSearch(query, {}, 150);
    if (search === null) return; // something else has been typed meanwhile
    const shown = await Promise.all(search.results.slice(0, onPage ? 30 : 8).map((result) => result.data()));
    const summary = document.createElement("p");
    const count = search.results.length;
    summary.textContent =
      count === 0 ? words.none.replace("{query}", query) : count === 1 ? words.one : words.many.replace("{n}", count);
    list.replaceChildren(summary, ...shown.map(resultLink));
  }
  field.addEventListener("input", update);
  if (field.value) update();
}

function resultLink(page) {
  // The part of the page with the most hits, if pagefind found one under a heading.
  const part = [...page.sub_results].sort((a, b) => b.locations.length - a.locations.length)[0] ?? page;
  const link = document.createElement("a");
  link.href = part.url;
  const title = document.createElement("strong");
  const heading = part.title === page.meta.title ? "" : ` › ${part.title.replace(/[#¶]$/, "").trim()}`;
  title.textContent = page.meta.title.replace(/[#¶]$/, "").trim() + heading;
  const excerpt = document.createElement("span");
  excerpt.innerHTML = part.excerpt; // pagefind escapes the text and marks the hits
  link.append(title, excerpt);
  return link;
}

async function startLiveSearch() {
  if (!location.protocol.startsWith("http")) return; // pagefind cannot read its index from a file
  const root = new URL(document.documentElement.dataset.content_root ?? "./", location.href);
  let pagefind;
  try {
    pagefind = await import(new URL("../pagefind/pagefind.js", root).href);
    await pagefind.init();
  } catch {
    return; // no index was built: Sphinx's search stays
  }
  for (const form of document.querySelectorAll("form.bd-search")) {
    const onPage = !form.closest("dialog");
    if (onPage) {
      form.querySelector("input[name=q]").value = new URLSearchParams(location.search).get("q") ?? "";
      document.getElementById("search-results")?.setAttribute("hidden", "");
    }
    liveSearch(form, pagefind, onPage);
  }
  document.documentElement.dataset.qlabSearch = "live";
}

document.addEventListener("DOMContentLoaded", startLiveSearch);
