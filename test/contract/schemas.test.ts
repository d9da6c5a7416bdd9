/**
 * The contract's schemas and those that the server validates with demand the same: bodies, parameters, answers,
 * the error envelope and the events of a stream. Words (descriptions, examples) may differ.
 */
import { describe, expect, test } from "bun:test";
import { ErrorEnvelope } from "../../src/api/schema/errors.ts";
import {
  EndEventData,
  ErrorEventData,
  MetricsEventData,
  StartedEventData,
  TokenEventData,
} from "../../src/api/schema/stream.ts";
import {
  allOperations,
  contractPath,
  isObject,
  type Json,
  type JsonObject,
  normalise,
  objectAt,
} from "../support/contract.ts";
import { buildApp } from "../support/test-app.ts";

/** TypeBox schemas carry symbols; JSON does not. */
const plain = (schema: unknown): Json => JSON.parse(JSON.stringify(schema)) as Json;

interface Hooks {
  readonly body?: unknown;
  readonly query?: unknown;
  readonly params?: unknown;
  readonly headers?: unknown;
  readonly response?: Readonly<Record<string, unknown>>;
}

const routes = new Map(
  buildApp({ shellsOnly: true }).app.routes.map(({ method, path, hooks }) => [
    `${method} ${contractPath(path)}`,
    hooks as Hooks,
  ]),
);
const operations = (await allOperations()).filter(({ path }) => !path.startsWith("/docs"));

/** Parameters as the contract lists them, put together as the object that the server validates. */
function parametersAsObject(parameters: readonly JsonObject[], place: string): Json {
  const chosen = parameters.filter(
    (parameter) => parameter.in === place && parameter.name !== "X-Correlation-Id",
  );
  const required = chosen
    .filter((parameter) => parameter.required === true)
    .map((parameter) => String(parameter.name));
  return {
    type: "object",
    properties: Object.fromEntries(
      chosen.map((parameter) => [String(parameter.name), parameter.schema ?? {}]),
    ),
    ...(required.length === 0 ? {} : { required }),
    // Other headers are none of a route's business.
    ...(place === "header" ? {} : { additionalProperties: false }),
  };
}

const empty = (): Json => ({ type: "object", properties: {} });

describe.each(operations.map((operation) => [`${operation.method} ${operation.path}`, operation] as const))(
  "%s",
  (name, found) => {
    const hooks = routes.get(name);

    test("takes what the contract says", () => {
      expect(hooks).toBeDefined();
      const body = objectAt(found.operation, "requestBody", "content", "application/json").schema;
      expect(hooks?.body === undefined).toBe(body === undefined);
      if (body !== undefined) expect(normalise(plain(hooks?.body))).toEqual(normalise(body));
      for (const [place, schema] of [
        ["path", hooks?.params],
        ["query", hooks?.query],
        ["header", hooks?.headers],
      ] as const) {
        const contracted = normalise(parametersAsObject(found.parameters, place));
        const named = Object.keys(objectAt(contracted, "properties")).length > 0;
        // A route that names no query leaves unknown parameters alone, as the contract does.
        expect(normalise(schema === undefined ? empty() : plain(schema))).toEqual(
          named ? contracted : empty(),
        );
      }
    });

    test("answers what the contract says", () => {
      const responses = objectAt(found.operation.responses);
      const declared = hooks?.response ?? {};
      for (const [status, schema] of Object.entries(declared)) {
        const contracted = objectAt(responses, status, "content", "application/json").schema;
        expect(`${status} ${contracted === undefined ? "is not in the contract" : "is"}`).toBe(
          `${status} is`,
        );
        if (contracted !== undefined) expect(normalise(plain(schema))).toEqual(normalise(contracted));
      }
      for (const [status, response] of Object.entries(responses)) {
        const contracted = objectAt(response, "content", "application/json").schema;
        if (contracted === undefined || status in declared) continue;
        // Success must be declared by the route; errors are all made in one place.
        expect(`${status}: ${JSON.stringify(normalise(contracted))}`).toBe(
          `${status}: ${JSON.stringify(sorted(normalise(plain(ErrorEnvelope)), normalise(contracted)))}`,
        );
      }
    });
  },
);

/** `value` with its keys in the order of `like`, so that texts compare. */
function sorted(value: Json, like: Json): Json {
  if (!isObject(value) || !isObject(like)) return value;
  const names = [...new Set([...Object.keys(like).filter((name) => name in value), ...Object.keys(value)])];
  return Object.fromEntries(names.map((name) => [name, sorted(value[name] ?? null, like[name] ?? null)]));
}

test("the events of a stream are those of the contract", () => {
  const stream = operations.find(({ operation }) => operation["x-events"] !== undefined);
  const events: Record<string, unknown> = {
    started: StartedEventData,
    token: TokenEventData,
    metrics: MetricsEventData,
    end: EndEventData,
    error: ErrorEventData,
  };
  const contracted = objectAt(stream?.operation["x-events"]);
  expect(Object.keys(contracted).sort()).toEqual(Object.keys(events).sort());
  for (const [name, schema] of Object.entries(events)) {
    expect(normalise(plain(schema))).toEqual(normalise(contracted[name] ?? null));
  }
});
