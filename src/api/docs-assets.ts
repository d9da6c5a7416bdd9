/**
 * The files of the documentation page, embedded: the compiled binary carries them, and the page needs nothing
 * from the internet. Used by docs.ts; `docsPaths` also by app/router.ts, which lets them through without a key.
 */

import uiStyle from "swagger-ui-dist/swagger-ui.css" with { type: "file" };
import uiScript from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };

export const docsPaths = ["/docs", "/docs/json", "/docs/start.js", "/docs/ui.css", "/docs/ui.js"] as const;

/** Paths that Bun.file reads: in the package, or inside the binary. */
export const docsFiles = { script: uiScript, style: uiStyle };

export const docsPage = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>orchestratord API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/ui.css">
</head>
<body>
<div id="ui"></div>
<noscript>This page needs JavaScript. The same as JSON: <a href="/docs/json">/docs/json</a></noscript>
<script src="/docs/ui.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
`;

/** A file of its own, so that the page's policy can forbid inline scripts. validatorUrl: null keeps it offline. */
export const docsStart = `SwaggerUIBundle({
  url: "/docs/json",
  dom_id: "#ui",
  deepLinking: true,
  validatorUrl: null,
});
`;

/** Swagger UI sets style attributes and draws its icons from data: URLs; nothing else comes from elsewhere. */
export const docsPolicy =
  "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
