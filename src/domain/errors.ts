/**
 * The closed table of error codes: what a client of this version may ever see; later features add theirs. The
 * HTTP edge and the stream both read it; nobody else decides a status. Compare `code`, never a class name:
 * minifying renames classes.
 */

export const errorTable = {
  INVALID_PARAMS: { status: 400, retriable: false },
  DEADLINE_UNMET: { status: 400, retriable: false },
  UNAUTHORIZED: { status: 401, retriable: false },
  FORBIDDEN: { status: 403, retriable: false },
  NOT_FOUND: { status: 404, retriable: false },
  METHOD_NOT_ALLOWED: { status: 405, retriable: false },
  CONFLICT: { status: 409, retriable: false },
  SESSION_EXHAUSTED: { status: 409, retriable: false },
  /** The pool keeps the model that it had. */
  RELOAD_FAILED: { status: 409, retriable: false },
  /** The catalog says that the model is Retired. */
  MODEL_DEPRECATED: { status: 410, retriable: false },
  PAYLOAD_TOO_LARGE: { status: 413, retriable: false },
  ADMISSION_REJECT: { status: 429, retriable: true },
  QUEUE_FULL_DROP_LRU: { status: 429, retriable: true },
  RATE_LIMITED: { status: 429, retriable: true },
  BUDGET_EXHAUSTED: { status: 429, retriable: false },
  STORAGE_UNAVAILABLE: { status: 503, retriable: true },
  POOL_UNREADY: { status: 503, retriable: true },
  POOL_UNAVAILABLE: { status: 503, retriable: true },
  REPLICA_EXHAUSTED: { status: 503, retriable: true },
  DECODE_TIMEOUT: { status: 503, retriable: true },
  WORKER_RESET: { status: 503, retriable: true },
  CANCELED: { status: 409, retriable: false },
  /** A stored artifact does not match its digest any more: it is kept aside and not served. */
  UNTRUSTED_ARTIFACT: { status: 500, retriable: false },
  INTERNAL: { status: 500, retriable: false },
} as const;

export type ErrorCode = keyof typeof errorTable;
export const errorCodes = Object.keys(errorTable) as ErrorCode[];

export interface ErrorDetails {
  readonly retryAfterMs?: number | undefined;
  /** Which bound refused: a full queue's policy, rate, streams, sessions, artifacts, budget-tokens, -time, -cost. */
  readonly policyLabel?: string | undefined;
  readonly engine?: string | undefined;
  readonly poolId?: string | undefined;
  /** Machine-readable particulars; never a secret, never a prompt. */
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly cause?: unknown;
}

/** An operating error: expected, coded, told to the client. The message says what to do next. */
export class OrchestratorError extends Error {
  readonly code: ErrorCode;
  readonly retryAfterMs: number | undefined;
  readonly policyLabel: string | undefined;
  readonly engine: string | undefined;
  readonly poolId: string | undefined;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(code: ErrorCode, message: string, more: ErrorDetails = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.code = code;
    this.retryAfterMs = more.retryAfterMs;
    this.policyLabel = more.policyLabel;
    this.engine = more.engine;
    this.poolId = more.poolId;
    this.details = more.details;
  }

  get status(): number {
    return errorTable[this.code].status;
  }

  get retriable(): boolean {
    return errorTable[this.code].retriable;
  }
}

export function isOrchestratorError(error: unknown): error is OrchestratorError {
  return (
    error instanceof Error &&
    typeof (error as Partial<OrchestratorError>).code === "string" &&
    Object.hasOwn(errorTable, (error as OrchestratorError).code)
  );
}
