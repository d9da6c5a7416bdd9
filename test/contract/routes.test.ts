/**
 * Routes mounted = routes in the contracts, both ways. The composition is that of test/support/test-app.ts: the
 * real router and the routes of src/api.
 */
import { expect, test } from "bun:test";
import { allOperations, contractPath } from "../support/contract.ts";
import { buildApp } from "../support/test-app.ts";

test("every mounted route is in a contract, and every contracted route is mounted", async () => {
  const mounted = buildApp({ shellsOnly: true }).app.routes.map(
    ({ method, path }) => `${method} ${contractPath(path)}`,
  );
  const contracted = (await allOperations()).map(({ method, path }) => `${method} ${path}`);
  expect([...mounted].sort()).toEqual([...contracted].sort());
  expect(new Set(mounted).size).toBe(mounted.length);
});

test("what comes in a later version is not mounted", () => {
  const mounted = buildApp({ shellsOnly: true }).app.routes.map(({ path }) => path);
  for (const later of ["/v1/replicasets", "/v1/sessions"]) {
    expect(mounted).not.toContain(later);
  }
});
