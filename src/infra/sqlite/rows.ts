/**
 * Rows of the database from and to the values of the port. The store calls it for each row it writes or reads.
 *
 * Always holds: nothing read back is trusted. Each JSON text has its CRC-32, its shape is checked, and the columns that
 * the indexes go by agree with it; what is written passes the same check first, so that it can be read again.
 */
import { type Static, type TSchema, Type } from "@sinclair/typebox";
import { type TypeCheck, TypeCompiler } from "@sinclair/typebox/compiler";
import { assert } from "../../domain/assert.ts";
import { engineKinds } from "../../domain/engine-kind.ts";
import { errorCodes } from "../../domain/errors.ts";
import { determinisms, priorities, type TaskSpec, workloads } from "../../domain/task.ts";
import type {
  StoredAllowance,
  StoredEnd,
  StoredSession,
  StoredTask,
  StoredTranscript,
} from "../../ports/task-store.ts";

const oneOf = <T extends string>(values: readonly T[]) =>
  Type.Union(values.map((value) => Type.Literal(value)));
const orNull = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
/** TypeBox refuses NaN and the infinities, which JSON would turn into null. */
const number = Type.Number();
const count = Type.Integer({ minimum: 0 });
const text = Type.String();
const bound = Type.Object({ tokens: orNull(number), timeMs: orNull(number), cost: orNull(number) });
const amounts = Type.Object({ tokens: number, timeMs: number, cost: number });

const message = Type.Object({ role: oneOf(["system", "user", "assistant"] as const), content: text });
const input = Type.Union([
  Type.Object({ kind: Type.Literal("prompt"), prompt: text }),
  Type.Object({ kind: Type.Literal("messages"), messages: Type.Array(message) }),
  Type.Object({ kind: Type.Literal("embedding"), inputs: Type.Array(text) }),
  Type.Object({ kind: Type.Literal("rerank"), query: text, inputs: Type.Array(text) }),
]);

/** What goes with the end of the task: it may be megabytes, and nobody asks for it again. */
const inputRow = Type.Object({
  input,
  renderedPrompt: orNull(text),
  grammar: orNull(text),
  jsonSchema: Type.Unknown(),
});
type InputRow = Static<typeof inputRow>;

const samplingRow = Type.Object({
  temperature: number,
  topP: number,
  topK: number,
  minP: number,
  repeatPenalty: number,
  presencePenalty: number,
  frequencyPenalty: number,
  stop: Type.Array(text),
});

const specRow = Type.Object({
  taskId: text,
  keyId: text,
  correlationId: text,
  sessionId: orNull(text),
  workload: oneOf(workloads),
  poolId: text,
  engine: oneOf(engineKinds),
  pinned: Type.Boolean(),
  modelRef: text,
  priority: oneOf(priorities),
  seed: count,
  determinism: oneOf(determinisms),
  samplerProfileVersion: text,
  sampling: samplingRow,
  maxTokens: count,
  ctx: count,
  deadlineMs: orNull(number),
  expectedTokens: orNull(number),
  budget: orNull(bound),
  kvHint: oneOf(["reuse", "cold"] as const),
  onDisconnect: oneOf(["cancel", "continue"] as const),
  metadata: Type.Record(Type.String(), text),
  tokensIn: count,
  tokensInExact: Type.Boolean(),
  bodyDigest: text,
});

const promise = Type.Object({
  queuePosition: number,
  startMs: number,
  startLowMs: number,
  startHighMs: number,
  endMs: number,
  onTimeProbability: orNull(number),
  basis: oneOf(["assumed", "warm_up", "learned"] as const),
});

const taskRow = Type.Object({
  ordinal: Type.Integer({ minimum: 1 }),
  createdMs: number,
  spec: specRow,
  promise,
  expectedTokensOut: number,
});
type TaskRow = Static<typeof taskRow>;

const endRow = Type.Object({
  state: oneOf(["done", "failed", "canceled"] as const),
  finishedMs: number,
  startedMs: orNull(number),
  firstTokenMs: orNull(number),
  attempts: count,
  replicaId: orNull(text),
  engineVersion: text,
  tokensIn: orNull(count),
  tokensOut: count,
  finishReason: orNull(oneOf(["stop", "length"] as const)),
  error: orNull(Type.Object({ code: oneOf(errorCodes), message: text })),
  artifactId: orNull(text),
});

const sessionRow = Type.Object({
  sessionId: text,
  keyId: text,
  createdMs: number,
  lastSeenMs: number,
  turns: count,
  budget: bound,
  spent: amounts,
});

const allowanceRow = Type.Object({ keyId: text, windowStartMs: number, spent: amounts });

const checks = {
  task: TypeCompiler.Compile(taskRow),
  input: TypeCompiler.Compile(inputRow),
  end: TypeCompiler.Compile(endRow),
  session: TypeCompiler.Compile(sessionRow),
  allowance: TypeCompiler.Compile(allowanceRow),
};

/** Text and checksum as they stand in two neighbouring columns. */
interface Sealed {
  readonly text: string;
  readonly crc: number;
}

function seal<T extends TSchema>(check: TypeCheck<T>, value: unknown, what: string): Sealed {
  const sound = check.Check(value);
  // Looking for what is wrong costs more than the check: only when something is.
  assert(sound, sound ? "" : `${what} can be read back: ${explain(check, value)}`);
  const json = JSON.stringify(value);
  return { text: json, crc: Bun.hash.crc32(json) };
}

/** A row that cannot be what this program wrote. The store turns it into a StoreError that names the file. */
class DamagedRow extends Error {
  readonly damagedRow = true;
}

export const isDamagedRow = (error: unknown): error is DamagedRow =>
  error instanceof Error && (error as Partial<DamagedRow>).damagedRow === true;

function unseal<T extends TSchema>(
  check: TypeCheck<T>,
  cell: unknown,
  crc: unknown,
  what: string,
): Static<T> {
  if (typeof cell !== "string" || Bun.hash.crc32(cell) !== crc)
    throw new DamagedRow(`${what} does not match its checksum`);
  let value: unknown;
  try {
    value = JSON.parse(cell);
  } catch (error) {
    throw new DamagedRow(`${what} is not JSON`, { cause: error });
  }
  if (!check.Check(value)) throw new DamagedRow(`${what} is not valid: ${explain(check, value)}`);
  return value;
}

/** Where it is wrong, never what stands there: it may be a prompt. */
function explain<T extends TSchema>(check: TypeCheck<T>, value: unknown): string {
  const first = check.Errors(value).First();
  return first === undefined ? "" : `${first.path || "/"}: ${first.message}`;
}

export function encodeTask(task: StoredTask): { readonly task: Sealed; readonly input: Sealed } {
  const { input, renderedPrompt, sampling, ...rest } = task.spec;
  const { grammar, jsonSchema, ...kept } = sampling;
  const { ordinal, createdMs, promise, expectedTokensOut } = task;
  const row = { ordinal, createdMs, spec: { ...rest, sampling: kept }, promise, expectedTokensOut };
  return {
    task: seal(checks.task, row, "the task"),
    input: seal(checks.input, { input, renderedPrompt, grammar, jsonSchema }, "the input"),
  };
}

export const encodeEnd = (end: StoredEnd): Sealed => seal(checks.end, end, "the end");
export const encodeSession = (session: StoredSession): Sealed => seal(checks.session, session, "the session");
export const encodeAllowance = (allowance: StoredAllowance): Sealed =>
  seal(checks.allowance, allowance, "the allowance");

/** The columns of a task in the order in which `decodeTask` takes them. */
export const taskColumns =
  "ordinal, task_id, key_id, session_id, state, finished_ms, task, task_crc, input, input_crc, end, end_crc, watched";

/** An ended task has no input any more: it reads as an empty prompt. */
const forgotten: InputRow = {
  input: { kind: "prompt", prompt: "" },
  renderedPrompt: null,
  grammar: null,
  jsonSchema: null,
};

/** @throws DamagedRow */
export function decodeTask(row: readonly unknown[]): StoredTask {
  const [ordinal, taskId, keyId, sessionId, state, finishedMs, task, taskCrc, cell, cellCrc, end, endCrc] =
    row;
  const watched = row[12] === 1;
  const what = `the task with ordinal ${String(ordinal)}`;
  const told = unseal(checks.task, task, taskCrc, what);
  const ended = end === null ? null : unseal(checks.end, end, endCrc, `the end of ${what}`);
  const given = cell === null ? forgotten : unseal(checks.input, cell, cellCrc, `the input of ${what}`);
  const agrees =
    told.ordinal === ordinal &&
    told.spec.taskId === taskId &&
    told.spec.keyId === keyId &&
    told.spec.sessionId === sessionId &&
    (ended?.state ?? null) === state &&
    (ended?.finishedMs ?? null) === finishedMs &&
    (ended === null) === (cell !== null);
  if (!agrees) throw new DamagedRow(`${what} stands under the columns of another`);
  return { ...told, spec: specOf(told, given), watched, ended };
}

function specOf(told: TaskRow, given: InputRow): TaskSpec {
  const { input, renderedPrompt, grammar, jsonSchema } = given;
  return { ...told.spec, input, renderedPrompt, sampling: { ...told.spec.sampling, grammar, jsonSchema } };
}

/** @throws DamagedRow */
export function decodeSession([sessionId, cell, crc]: readonly unknown[]): StoredSession {
  const session = unseal(checks.session, cell, crc, "a session");
  if (session.sessionId !== sessionId) throw new DamagedRow("a session stands under the id of another");
  return session;
}

/** @throws DamagedRow */
export function decodeAllowance([keyId, cell, crc]: readonly unknown[]): StoredAllowance {
  const allowance = unseal(checks.allowance, cell, crc, "an allowance");
  if (allowance.keyId !== keyId) throw new DamagedRow("an allowance stands under the key of another");
  return allowance;
}

export const transcriptColumns = "ordinal, artifact_id, key_id, created_ms, text, text_crc";

/** One that is damaged is told as such: nothing else depends on it. */
export function decodeTranscript(row: readonly unknown[]): StoredTranscript {
  const [ordinal, artifactId, keyId, createdMs, cell, crc] = row;
  const sound = typeof cell === "string" && Bun.hash.crc32(cell) === crc;
  return {
    ordinal: Number(ordinal),
    artifactId: String(artifactId),
    keyId: String(keyId),
    createdMs: Number(createdMs),
    text: sound ? cell : null,
  };
}
