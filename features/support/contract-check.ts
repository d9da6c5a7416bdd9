/**
 * Holds what the daemon answers in the scenarios to the contracts: the status is one that the operation
 * declares, the body and every stream event fit their schema, and the headers that every answer owes are there.
 * Called by the world for every exchange.
 */
import { expect } from "bun:test";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020";
import { type ErrorCode, errorTable } from "../../src/domain/errors.ts";
import { allOperations, type JsonObject, type Operation, objectAt } from "../../test/support/contract.ts";
import type { SseEvent } from "../../test/support/sse-client.ts";

const ajv = new Ajv2020({ strict: false, allErrors: true });
const operations = (await allOperations()).map((operation) => ({
  ...operation,
  pattern: new RegExp(`^${operation.path.replace(/\{[^}]+\}/g, "[^/]+")}$`),
}));
const compiled = new Map<string, ValidateFunction>();

/** The requirement ids that the contracts name. */
export const requirements: ReadonlySet<string> = new Set(
  operations.flatMap(({ operation }) => (operation["x-requirements"] as string[] | undefined) ?? []),
);

export interface Exchange {
  readonly method: string;
  readonly path: string;
  readonly response: Response;
  /** The body where it is JSON. */
  readonly json: unknown;
  /** The correlation id that was sent; null: none. */
  readonly sentCorrelationId: string | null;
}

export function checkExchange({ method, path, response, json, sentCorrelationId }: Exchange): void {
  const correlationId = response.headers.get("x-correlation-id");
  expect(correlationId).toMatch(/^[A-Za-z0-9._:-]{1,128}$/);
  if (sentCorrelationId !== null && /^[A-Za-z0-9._:-]{1,128}$/.test(sentCorrelationId))
    expect(correlationId).toBe(sentCorrelationId);
  const operation = operationOf(method, path);
  if (response.status >= 400 && !path.startsWith("/readyz") && method !== "HEAD")
    checkError(response, json as Record<string, unknown>, operation);
  if (operation === null) return;
  const declared = objectAt(operation.operation, "responses", String(response.status));
  expect(Object.keys(declared).length > 0 ? "declared" : `${method} ${path} ${response.status}`).toBe(
    "declared",
  );
  const type = response.headers.get("content-type")?.split(";")[0] ?? "";
  if (response.status === 204 || response.status === 304) return;
  expect(Object.keys(objectAt(declared, "content"))).toContain(type);
  if (type !== "application/json") return;
  const schema = objectAt(declared, "content", type, "schema");
  expectFits(`${method} ${operation.path} ${response.status}`, schema, json);
}

/** Every event fits the schema of its type. */
export function checkEvents(events: readonly SseEvent[]): void {
  const stream = operationOf("GET", "/v1/tasks/x/stream");
  for (const { type, data } of events)
    expectFits(`event ${type}`, objectAt(stream?.operation, "x-events", type), data);
}

/** What every error owes, whatever route it comes from. */
function checkError(response: Response, body: Record<string, unknown>, operation: Operation | null): void {
  const { code, correlation_id, retriable, retry_after_ms } = body;
  const known = errorTable[code as ErrorCode];
  expect({ code, status: known?.status, retriable: known?.retriable }).toEqual({
    code,
    status: response.status as 400,
    retriable: retriable as false,
  });
  expect(correlation_id).toBe(response.headers.get("x-correlation-id"));
  expect(typeof body.message === "string" && body.message !== "").toBe(true);
  const comesBack = response.status === 429 || response.status === 503;
  expect(response.headers.get("retry-after")).toBe(
    comesBack ? String(Math.ceil(Number(retry_after_ms) / 1000)) : null,
  );
  expect(response.headers.get("x-backoff-ms")).toBe(
    comesBack ? String(Math.ceil(Number(retry_after_ms))) : null,
  );
  if (operation === null) {
    const [any] = operations;
    expectFits(
      "an error",
      objectAt(any?.operation, "responses", "500", "content", "application/json", "schema"),
      body,
    );
  }
}

function operationOf(method: string, path: string): Operation | null {
  const plain = path.split("?")[0] ?? "";
  return operations.find((one) => one.method === method && one.pattern.test(plain)) ?? null;
}

function expectFits(label: string, schema: JsonObject, value: unknown): void {
  expect(Object.keys(schema).length > 0 ? "a schema" : `${label} has none`).toBe("a schema");
  const validate = compiled.get(label) ?? ajv.compile(schema);
  compiled.set(label, validate);
  expect(
    validate(value) ? "fits" : `${label}: ${ajv.errorsText(validate.errors)} in ${JSON.stringify(value)}`,
  ).toBe("fits");
}
