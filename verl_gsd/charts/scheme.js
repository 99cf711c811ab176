/* The colours that the reader chose, set before the page is painted. A browser may forbid pages from a file to store. */
try { document.documentElement.dataset.scheme = localStorage.scheme ?? ""; } catch {}
