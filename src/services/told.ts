/**
 * What an earlier process told the viewers of a task that it could not end, read back from the journal: the frames, and
 * what the next attempt has to know to go on with them. The attempt runner writes the marks, the registry restores.
 */
import { type Static, Type } from "@sinclair/typebox";
import { TypeCompiler } from "@sinclair/typebox/compiler";
import type { EngineBuild, Exactness, SentPiece } from "../domain/continuation.ts";
import { decodeFrame } from "../domain/sse.ts";
import type { JournalRecord } from "../ports/journal.ts";
import type { RestoredFrame } from "./event-log.ts";

/** What comes back of a task's record, with the frames that its log shows. */
export interface Told {
  readonly frames: readonly RestoredFrame[];
  readonly sent: SentPiece[];
  readonly tokensOut: number;
  readonly tokensIn: number | null;
  readonly kvWarmth: boolean;
  readonly attempts: number;
  readonly replicaId: string | null;
  readonly engineVersion: string;
  readonly startedMs: number | null;
  readonly firstTokenMs: number | null;
  readonly firstBuild: EngineBuild | null;
  readonly exact: Exactness;
  readonly continuations: number;
  readonly chargedMs: number;
}

const textOrNull = Type.Union([Type.String(), Type.Null()]);
const numberOrNull = Type.Union([Type.Number(), Type.Null()]);
const Facts = Type.Object({
  attempt: Type.Integer({ minimum: 1 }),
  replicaId: Type.String(),
  engineVersion: Type.String(),
  startedMs: numberOrNull,
  firstTokenMs: numberOrNull,
  exact: Type.Union([Type.Literal("yes"), Type.Literal("unverified"), Type.Literal("no")]),
  continuations: Type.Integer({ minimum: 0 }),
  chargedMs: Type.Number({ minimum: 0 }),
  build: Type.Object({
    engine: Type.String(),
    version: textOrNull,
    model: textOrNull,
    modelStamp: textOrNull,
    settings: Type.String(),
    device: textOrNull,
  }),
});
export type AttemptFacts = Static<typeof Facts>;
const facts = TypeCompiler.Compile(Facts);
const decoder = new TextDecoder();

/** Of an attempt that says its first new token, for the journal. */
export const encodeFacts = (said: AttemptFacts): string => JSON.stringify(said);

/** Null: another version wrote it, and nobody can go on with that. */
export function toldBy(records: readonly JournalRecord[]): Told | null {
  const frames: RestoredFrame[] = [];
  const sent: SentPiece[] = [];
  let first: AttemptFacts | null = null;
  let last: AttemptFacts | null = null;
  let started: Pick<Told, "tokensIn" | "kvWarmth"> = { tokensIn: null, kvWarmth: false };
  for (const { kind, bytes, tokenIds = [] } of records) {
    if (kind === "begin_again") continue;
    if (kind === "attempt") {
      const said = parsed(decoder.decode(bytes));
      if (!facts.Check(said)) return null;
      first ??= said;
      last = said;
      continue;
    }
    const event = decodeFrame(decoder.decode(bytes));
    if (event?.type !== kind) return null;
    frames.push({ kind, bytes });
    if (event.type === "token") sent.push({ text: event.t, ids: tokenIds });
    else if (event.type === "started")
      started = { tokensIn: event.data.tokens_in, kvWarmth: event.data.kv_warmth };
  }
  if (sent.length > 0 && last === null) return null;
  return {
    ...started,
    frames,
    sent,
    tokensOut: sent.length,
    attempts: last?.attempt ?? 0,
    replicaId: last?.replicaId ?? null,
    engineVersion: last?.engineVersion ?? "unknown",
    startedMs: last?.startedMs ?? null,
    firstTokenMs: last?.firstTokenMs ?? null,
    firstBuild: first?.build ?? null,
    exact: last?.exact ?? "yes",
    continuations: last?.continuations ?? 0,
    chargedMs: last?.chargedMs ?? 0,
  };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
