/**
 * Assertions: a programmer's mistake stops the turn that made it, in production too.
 * Operating errors are `OrchestratorError`s (errors.ts); nothing here is for bad input.
 */

export class AssertionError extends Error {
  readonly assertion = true;
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(`assertion failed: ${message}`);
}

/** The default arm of a switch over a union: compiles only while every member has its arm. */
export function assertNever(value: never, what: string): never {
  throw new AssertionError(`assertion failed: unexpected ${what}: ${JSON.stringify(value)}`);
}

/** Class names do not survive minifying, a property does. */
export function isAssertion(error: unknown): error is AssertionError {
  return error instanceof Error && (error as Partial<AssertionError>).assertion === true;
}
