/**
 * The contracts are valid OpenAPI 3.1, every operation shows examples of what goes in and out, and the examples
 * are what the schemas say. The document that the running server writes about itself is valid too.
 */
import { describe, expect, test } from "bun:test";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020";
import { apiVersion } from "../../src/api/api-version.ts";
import { errorTable } from "../../src/domain/errors.ts";
import {
  allOperations,
  contractNames,
  isObject,
  type Json,
  type JsonObject,
  objectAt,
  operationsOf,
  readContract,
} from "../support/contract.ts";
import { startTestApp } from "../support/test-app.ts";

const ajv = new Ajv2020({ strict: false, allErrors: true });

async function validate(document: JsonObject): Promise<void> {
  const validator = new Validator();
  const result = await validator.validate(structuredClone(document));
  expect(result.errors ?? []).toEqual([]);
  expect(result.valid).toBe(true);
}

/** Compiled once for each schema: the error envelope alone stands at most answers. */
const compiled = new Map<string, ReturnType<typeof ajv.compile>>();

function expectMatches(schema: Json | undefined, value: Json | undefined, where: string): void {
  const key = JSON.stringify(schema);
  const check = compiled.get(key) ?? ajv.compile(objectAt(schema));
  compiled.set(key, check);
  const fits = check(value);
  expect(fits ? "fits" : `${where}: ${ajv.errorsText(check.errors)}`).toBe("fits");
}

const valuesOf = (media: JsonObject): Json[] =>
  Object.values(objectAt(media.examples)).flatMap((example) =>
    isObject(example) ? [example.value ?? null] : [],
  );

const label = ({ method, path }: { method: string; path: string }): string => `${method} ${path}`;

for (const name of contractNames) {
  describe(`contracts/openapi/${name}.yaml`, () => {
    test("is valid OpenAPI 3.1 of the version that the server names", async () => {
      const document = await readContract(name);
      await validate(document);
      expect(document.openapi).toBe("3.1.0");
      expect(objectAt(document.info).version).toBe(apiVersion);
    });

    test("every part is used", async () => {
      const document = await readContract(name);
      const text = JSON.stringify(document);
      for (const kind of ["parameters", "headers", "examples", "responses", "schemas"]) {
        for (const part of Object.keys(objectAt(document, "components", kind))) {
          expect(text).toContain(`"#/components/${kind}/${part}"`);
        }
      }
    });
  });
}

describe("operations", () => {
  test("have an id of their own, requirements and a summary", async () => {
    const operations = await allOperations();
    const ids = operations.map(({ operation }) => operation.operationId);
    expect(new Set(ids).size).toBe(operations.length);
    for (const { operation, ...at } of operations) {
      expect(`${label(at)} ${operation.summary}`).not.toContain("undefined");
      const requirements = operation["x-requirements"];
      expect(Array.isArray(requirements) && requirements.length > 0).toBe(true);
      for (const id of Array.isArray(requirements) ? requirements : [])
        expect(id).toMatch(/^ORCHD-[A-Z]+-[1-9][0-9]*$/);
    }
  });

  test("show examples of bodies and parameters that fit", async () => {
    for (const { operation, parameters, ...at } of await allOperations()) {
      for (const parameter of parameters) {
        const where = `${label(at)} ${parameter.name}`;
        expect(`${where}: ${parameter.example === undefined ? "no example" : "ok"}`).toBe(`${where}: ok`);
        expectMatches(parameter.schema, parameter.example, where);
      }
      const content = objectAt(operation, "requestBody", "content");
      if (operation.requestBody === undefined) continue;
      for (const [type, media] of Object.entries(content)) {
        const values = valuesOf(objectAt(media));
        expect(values.length).toBeGreaterThan(0);
        for (const value of values) expectMatches(objectAt(media).schema, value, `${label(at)} ${type}`);
      }
    }
  });

  test("show examples of every answer that fit, with its status, headers and requirements", async () => {
    for (const { operation, ...at } of await allOperations()) {
      for (const [status, response] of Object.entries(objectAt(operation.responses))) {
        const where = `${label(at)} ${status}`;
        const headers = Object.keys(objectAt(response, "headers"));
        expect(`${where}: ${headers.join()}`).toContain("X-Correlation-Id");
        if (status === "429" || status === "503") {
          expect(headers).toContain("Retry-After");
          expect(headers).toContain("X-Backoff-Ms");
        }
        for (const [type, media] of Object.entries(objectAt(response, "content"))) {
          const values = valuesOf(objectAt(media));
          expect(`${where} ${type}: ${values.length > 0 ? "has examples" : "none"}`).toBe(
            `${where} ${type}: has examples`,
          );
          for (const value of values) {
            expectMatches(objectAt(media).schema, value, `${where} ${type}`);
            if (isObject(value) && typeof value.code === "string") {
              const entry = errorTable[value.code as keyof typeof errorTable];
              expect(`${where}: ${entry.status}`).toBe(`${where}: ${status}`);
              expect(value.retriable).toBe(entry.retriable);
            }
          }
        }
      }
    }
  });

  test("streams: the events of the examples fit their models", async () => {
    const streams = (await allOperations()).filter(({ operation }) => operation["x-events"] !== undefined);
    expect(streams.map(label).sort()).toEqual(["GET /v1/pools/{id}/logs", "GET /v1/tasks/{id}/stream"]);
    for (const { operation, path } of streams) {
      const models = objectAt(operation["x-events"]);
      const seen = new Set<string>();
      for (const value of valuesOf(objectAt(operation, "responses", "200", "content", "text/event-stream"))) {
        // A task's events count from 0, a log is shown from anywhere; what tells of a gap has no number of its own.
        let id = path === "/v1/tasks/{id}/stream" ? 0 : null;
        for (const frame of String(value)
          .split("\n\n")
          .filter((text) => text !== "" && !text.startsWith(":"))) {
          const match = /^(?:id: (\d+)\n|(?=event: gap\n))event: (\w+)\ndata: (.*)$/.exec(frame.trimEnd());
          expect(`${frame}: ${match === null ? "no frame" : "frame"}`).toBe(`${frame}: frame`);
          const [, given, event = "", data = ""] = match ?? [];
          if (event !== "gap") {
            expect(Number(given)).toBe(id ?? Number(given));
            id = Number(given) + 1;
          }
          seen.add(event);
          expectMatches(models[event], JSON.parse(data) as Json, event);
        }
      }
      expect([...seen].sort()).toEqual(Object.keys(models).sort());
    }
  });
});

test("what the server says of itself at /docs/json is valid and names every route of the contracts", async () => {
  const server = startTestApp();
  try {
    const response = await fetch(`${server.url}/docs/json`);
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("application/json");
    const document = (await response.json()) as JsonObject;
    await validate(document);
    expect(objectAt(document.info).version).toBe(apiVersion);
    const wanted = (await allOperations()).map(label).filter((route) => !route.startsWith("GET /docs"));
    expect(operationsOf(document).map(label).sort()).toEqual(wanted.sort());
  } finally {
    await server.stop();
  }
});
