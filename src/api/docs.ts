/**
 * GET /docs and /docs/json: the documentation of the routes that are mounted, from the schemas they validate
 * with. Called by app/router.ts with the same plugins that it mounts.
 *
 * The JSON is @elysiajs/swagger's, repaired: what that plugin writes is not valid OpenAPI (responses without a
 * description, `$id` and bare references, JSON Schema types of 3.1 under the number 3.0.3). Its page is not
 * used: it loads scripts from a CDN.
 */
import { type AnyElysia, Elysia } from "elysia";
import { apiVersion } from "./api-version.ts";
import { docsFiles, docsPage, docsPolicy, docsStart } from "./docs-assets.ts";

const hidden = { detail: { hide: true } };

export function createDocs(plugins: readonly AnyElysia[]): AnyElysia {
  let document: Promise<string> | undefined;

  const answer = (body: string | Blob, type: string, cache: string): Response =>
    new Response(body, {
      headers: {
        "Content-Type": type,
        "Content-Security-Policy": docsPolicy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": cache,
      },
    });

  return new Elysia()
    .get("/docs", () => answer(docsPage, "text/html; charset=utf-8", "no-cache"), hidden)
    .get("/docs/start.js", () => answer(docsStart, "text/javascript; charset=utf-8", "no-cache"), hidden)
    .get(
      "/docs/ui.js",
      () => answer(Bun.file(docsFiles.script), "text/javascript; charset=utf-8", "max-age=86400"),
      hidden,
    )
    .get(
      "/docs/ui.css",
      () => answer(Bun.file(docsFiles.style), "text/css; charset=utf-8", "max-age=86400"),
      hidden,
    )
    .get(
      "/docs/json",
      async () => {
        document ??= describe(plugins);
        return answer(await document, "application/json", "no-cache");
      },
      hidden,
    );
}

/** Asks the swagger plugin on an application of its own, so that its routes are not ours. */
async function describe(plugins: readonly AnyElysia[]): Promise<string> {
  // Loaded when somebody asks: most daemons never show their documentation, and it is a tenth of their memory.
  const { swagger } = await import("@elysiajs/swagger");
  const app: AnyElysia = new Elysia({ normalize: false });
  app.use(
    swagger({
      path: "/page",
      specPath: "/spec",
      exclude: ["/page", "/spec"],
      documentation: {
        info: {
          title: "orchestratord",
          version: apiVersion,
          description: "One queue, one promise for each task, every token exactly once.",
          license: { name: "Apache-2.0", identifier: "Apache-2.0" } as { name: string },
        },
        components: {
          securitySchemes: {
            ApiKey: { type: "apiKey", in: "header", name: "X-API-Key" },
            Bearer: { type: "http", scheme: "bearer" },
          },
        },
      },
    }),
  );
  for (const plugin of plugins) app.use(plugin);
  const response = await app.handle(new Request("http://localhost/spec"));
  return JSON.stringify(repairDocument((await response.json()) as Json));
}

type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
type JsonObject = { [name: string]: Json };

const isObject = (node: Json | undefined): node is JsonObject =>
  typeof node === "object" && node !== null && !Array.isArray(node);

/** Exported for its test. */
export function repairDocument(document: Json): Json {
  const repaired = repair(document);
  if (!isObject(repaired)) return repaired;
  // The schemas are JSON Schema 2020-12 (`type: "null"`, `const`): that is OpenAPI 3.1.
  repaired.openapi = "3.1.0";
  for (const path of Object.values(isObject(repaired.paths) ? repaired.paths : {})) {
    if (!isObject(path)) continue;
    for (const operation of Object.values(path)) if (isObject(operation)) repairOperation(operation);
  }
  return repaired;
}

function repairOperation(operation: JsonObject): void {
  const { responses } = operation;
  if (isObject(responses)) {
    for (const [status, response] of Object.entries(responses)) {
      if (!isObject(response)) continue;
      if (typeof response.description !== "string")
        response.description = status.startsWith("2") ? "Done." : "An error.";
      keepJson(response);
    }
  } else {
    operation.responses = { default: { description: "See the contract." } };
  }
  if (isObject(operation.requestBody)) keepJson(operation.requestBody);
}

/** The plugin names every type that Elysia could parse; only JSON is taken and given where there is a schema. */
function keepJson(holder: JsonObject): void {
  if (isObject(holder.content) && holder.content["application/json"] !== undefined) {
    holder.content = { "application/json": holder.content["application/json"] };
  }
}

function repair(node: Json): Json {
  if (Array.isArray(node)) return node.map(repair);
  if (!isObject(node)) return node;
  const out: JsonObject = {};
  for (const [name, value] of Object.entries(node)) {
    if (name === "$id" && typeof value === "string") continue;
    out[name] =
      name === "$ref" && typeof value === "string" && !value.startsWith("#")
        ? `#/components/schemas/${value}`
        : repair(value);
  }
  return closedSets(out);
}

/** A union of constants reads better as an enum. */
function closedSets(schema: JsonObject): JsonObject {
  const { anyOf, ...rest } = schema;
  if (
    Array.isArray(anyOf) &&
    anyOf.length > 0 &&
    anyOf.every((member) => isObject(member) && typeof member.const === "string")
  ) {
    return {
      ...rest,
      type: "string",
      enum: anyOf.map((member) => (isObject(member) ? (member.const ?? null) : null)),
    };
  }
  return schema;
}
