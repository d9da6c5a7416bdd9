/** What a client is told of a value that a schema refuses, beside what test/http/input.test.ts asks over HTTP. */
import { expect, test } from "bun:test";
import { explain } from "../../src/app/middleware/validation-message.ts";

const refusalOf = (values: readonly string[], value: unknown) =>
  explain({
    in: "body",
    path: "/choice",
    kind: 62,
    schema: values.length === 1 ? { const: values[0] } : { anyOf: values.map((one) => ({ const: one })) },
    value,
  });

test("the nearest of several values is named", () => {
  expect(refusalOf(["v1", "next"], "v2")).toEqual({
    message: 'choice must be one of v1, next. Did you mean "v1"?',
    details: { in: "body", field: "choice", expected: "one of v1, next", nearest: "v1" },
  });
});

test("the only value is said once", () => {
  expect(refusalOf(["v1"], "v2")).toEqual({
    message: 'choice must be "v1".',
    details: { in: "body", field: "choice", expected: '"v1"' },
  });
});
