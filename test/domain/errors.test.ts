/** The closed table of codes against the table of the behaviour, and errors told apart by code. */
import { describe, expect, test } from "bun:test";
import {
  type ErrorCode,
  errorCodes,
  errorTable,
  isOrchestratorError,
  OrchestratorError,
} from "../../src/domain/errors.ts";
import { EngineError } from "../../src/ports/engine.ts";

/** Written down a second time on purpose: a status that changes is a change of the contract. */
const documented: Readonly<Record<ErrorCode, readonly [status: number, retriable: boolean]>> = {
  INVALID_PARAMS: [400, false],
  DEADLINE_UNMET: [400, false],
  UNAUTHORIZED: [401, false],
  FORBIDDEN: [403, false],
  NOT_FOUND: [404, false],
  METHOD_NOT_ALLOWED: [405, false],
  CONFLICT: [409, false],
  SESSION_EXHAUSTED: [409, false],
  RELOAD_FAILED: [409, false],
  MODEL_DEPRECATED: [410, false],
  PAYLOAD_TOO_LARGE: [413, false],
  ADMISSION_REJECT: [429, true],
  QUEUE_FULL_DROP_LRU: [429, true],
  RATE_LIMITED: [429, true],
  BUDGET_EXHAUSTED: [429, false],
  STORAGE_UNAVAILABLE: [503, true],
  POOL_UNREADY: [503, true],
  POOL_UNAVAILABLE: [503, true],
  REPLICA_EXHAUSTED: [503, true],
  DECODE_TIMEOUT: [503, true],
  WORKER_RESET: [503, true],
  CANCELED: [409, false],
  UNTRUSTED_ARTIFACT: [500, false],
  INTERNAL: [500, false],
};

describe("error codes", () => {
  test("are exactly the documented ones", () => {
    expect([...errorCodes].sort()).toEqual(Object.keys(documented).sort() as ErrorCode[]);
  });
  for (const code of errorCodes)
    test(`${code} has its status and says whether to try again`, () => {
      const error = new OrchestratorError(code, "what to do");
      expect([error.status, error.retriable]).toEqual([...documented[code]]);
    });
  test("that ask to try again are the ones of load and of lost engines", () => {
    for (const code of errorCodes)
      if (errorTable[code].retriable) expect([429, 503]).toContain(errorTable[code].status);
  });
});

describe("an OrchestratorError", () => {
  test("carries what the client is told, and its cause for the log", () => {
    const cause = new Error("below");
    const error = new OrchestratorError("ADMISSION_REJECT", "full", {
      retryAfterMs: 7,
      policyLabel: "reject",
      engine: "mock",
      poolId: "chat",
      details: { a: 1 },
      cause,
    });
    expect(error).toMatchObject({
      code: "ADMISSION_REJECT",
      message: "full",
      retryAfterMs: 7,
      policyLabel: "reject",
      engine: "mock",
      poolId: "chat",
      details: { a: 1 },
    });
    expect(error.cause).toBe(cause);
    expect(new OrchestratorError("INTERNAL", "x").cause).toBeUndefined();
  });

  test("is told by its code, not by its class", () => {
    const foreign = Object.assign(new Error("from another realm"), { code: "NOT_FOUND" });
    expect(isOrchestratorError(foreign)).toBe(true);
    for (const other of [
      new Error("plain"),
      Object.assign(new Error("no such file"), { code: "ENOENT" }),
      Object.assign(new Error("inherited"), { code: "toString" }),
      new EngineError("connection", "gone"),
      { code: "NOT_FOUND" },
      null,
    ])
      expect(isOrchestratorError(other)).toBe(false);
  });
});
