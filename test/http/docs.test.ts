/** The documentation page works without the internet: everything it asks for comes from this server. */
import { afterAll, describe, expect, test } from "bun:test";
import { repairDocument } from "../../src/api/docs.ts";
import { docsPaths } from "../../src/api/docs-assets.ts";
import { startTestApp } from "../support/test-app.ts";

const server = startTestApp();
afterAll(() => server.stop());

describe("/docs", () => {
  test("names only files of this server, and every one is there", async () => {
    const response = await fetch(`${server.url}/docs`);
    const html = await response.text();
    expect(response.headers.get("content-type")).toBe("text/html; charset=utf-8");
    expect(html).not.toMatch(/https?:|\/\/[a-z]/i);
    // No inline program: the policy forbids it.
    expect(html).not.toMatch(/<script(?![^>]*\ssrc=)/);
    const named = [...html.matchAll(/(?:src|href)="([^"]+)"/g)]
      .map((match) => match[1] ?? "")
      .filter((url) => url !== "data:,");
    expect([...new Set(named)].sort()).toEqual(docsPaths.filter((path) => path !== "/docs").sort());
    for (const path of named) expect((await fetch(server.url + path)).status).toBe(200);
  });

  test("start.js asks only this server", async () => {
    const text = await (await fetch(`${server.url}/docs/start.js`)).text();
    expect(text).not.toMatch(/https?:/);
    expect(text).toContain("validatorUrl: null");
  });

  test.each(docsPaths)("%s carries the policy and its type", async (path) => {
    const response = await fetch(server.url + path);
    const text = await response.text();
    expect(text.length).toBeGreaterThan(50);
    const policy = response.headers.get("content-security-policy") ?? "";
    expect(policy).toStartWith("default-src 'self'");
    expect(policy).not.toMatch(/https?:|\*/);
    expect(response.headers.get("x-content-type-options")).toBe("nosniff");
    const types: Record<string, string> = {
      js: "text/javascript; charset=utf-8",
      css: "text/css; charset=utf-8",
      "/docs/json": "application/json",
    };
    const type = types[path.split(".")[1] ?? path] ?? "text/html; charset=utf-8";
    expect(response.headers.get("content-type")).toBe(type);
  });

  test("the style brings no fonts or pictures from elsewhere", async () => {
    const css = await (await fetch(`${server.url}/docs/ui.css`)).text();
    const urls = [...css.matchAll(/url\(\s*["']?([^)"']{0,40})/g)].map((match) => match[1] ?? "");
    expect(urls.filter((url) => !url.startsWith("data:"))).toEqual([]);
    expect(css).not.toMatch(/@import/);
  });
});

test("repairDocument mends what the plugin writes", () => {
  const mended = repairDocument({
    openapi: "3.0.3",
    paths: {
      "/a": {
        get: {
          responses: {
            200: {
              content: { "application/json": { schema: { $ref: "Msg" } }, "text/plain": { schema: {} } },
            },
            404: {},
          },
        },
        post: {
          requestBody: {
            content: { "application/json": { schema: { type: "integer" } }, "text/plain": {} },
          },
        },
      },
    },
    components: {
      schemas: {
        Msg: {
          $id: "#/Msg",
          anyOf: [
            { const: "a", type: "string" },
            { const: "b", type: "string" },
          ],
        },
      },
    },
  });
  expect(mended).toEqual({
    openapi: "3.1.0",
    paths: {
      "/a": {
        get: {
          responses: {
            200: {
              description: "Done.",
              content: { "application/json": { schema: { $ref: "#/components/schemas/Msg" } } },
            },
            404: { description: "An error." },
          },
        },
        post: {
          requestBody: { content: { "application/json": { schema: { type: "integer" } } } },
          responses: { default: { description: "See the contract." } },
        },
      },
    },
    components: { schemas: { Msg: { type: "string", enum: ["a", "b"] } } },
  });
});
