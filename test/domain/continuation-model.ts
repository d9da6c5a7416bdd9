/**
 * A pure engine for the tests of continuation: its next token is a function of all ids before it and the seed. As
 * the real one it keeps back the frames of tokens that end inside a character, holds text that may begin a stop
 * string, looks for stop strings only in what it says itself, and begins a grammar anew with every request.
 */
import {
  type ContinuationInput,
  type ContinuationPlan,
  type EngineBuild,
  type Exactness,
  nameIds,
  planAfterDivergence,
  planContinuation,
  type SentPiece,
  tokensOfEnded,
  unnamedId,
  unnamedTexts,
} from "../../src/domain/continuation.ts";
import { ContinuedOutput } from "../../src/domain/continued-output.ts";
import { openStopUnits } from "../../src/domain/stop-strings.ts";
import type { Sampling, TaskSpec } from "../../src/domain/task.ts";

const words = [" the", " old", " café", "ab", "a", "b", " river", ".", "é", "\n", " s", "top", " ö"];
const wordIdFirst = 300;
const bytesOf = (id: number): Uint8Array =>
  id < 256 ? Uint8Array.of(id) : new TextEncoder().encode(words[id - wordIdFirst] ?? "");
export const beginId = 299;
const endId = 298;

/** The longest word that fits, else bytes. */
export function tokenize(text: string): number[] {
  const ids: number[] = [];
  for (let at = 0; at < text.length; ) {
    const word = words
      .filter((one) => text.startsWith(one, at))
      .sort((a, b) => b.length - a.length)
      .at(0);
    const char = String.fromCodePoint(text.codePointAt(at) ?? 0);
    if (word !== undefined) ids.push(wordIdFirst + words.indexOf(word));
    else ids.push(...new TextEncoder().encode(char));
    at += (word ?? char).length;
  }
  return ids;
}

function hash(ids: readonly number[], salt: number): number {
  let h = 0x811c9dc5 ^ salt;
  for (const id of ids) h = Math.imul(h ^ id, 0x01000193) >>> 0;
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return (h ^ (h >>> 13)) >>> 0;
}

/** Bytes of characters that the vocabulary has no word for: said one by one. */
const torn = ["日", "🙂", "ö", "ß"].map((char) => [...new TextEncoder().encode(char)]);

function nextId(ids: readonly number[], salt: number): number {
  // A begun character is gone on with: the last bytes tell which.
  for (const bytes of torn)
    for (let said = bytes.length - 1; said > 0; said--)
      if (bytes.slice(0, said).every((byte, at) => ids[ids.length - said + at] === byte))
        return bytes[said] ?? 0;
  const draw = hash(ids, salt);
  if (draw % 61 === 0) return endId;
  if (draw % 5 === 0) return torn[(draw >>> 8) % torn.length]?.[0] ?? 0;
  return wordIdFirst + ((draw >>> 8) % words.length);
}

export interface ModelRequest {
  readonly ids: readonly number[];
  readonly maxTokens: number;
  readonly seed: number;
  readonly sampling: Sampling;
  /** Changes what is said after so many tokens; 0 as salt: nothing. */
  readonly salt: number;
  readonly saltAfter: number;
}

export type Frame =
  | { readonly kind: "piece"; readonly text: string; readonly ids: readonly number[] }
  | { readonly kind: "final"; readonly finishReason: "stop" | "length"; readonly tokensOut: number };

/** The text that a grammar of the model allows: letters in pairs; a test's own rule, prefix-closed. */
const allowed = (text: string): boolean => !/[.\n]/.test(text);

export function* generate(request: ModelRequest): Generator<Frame> {
  const { stop, grammar, temperature } = request.sampling;
  const seed = temperature === 0 ? 0 : request.seed + 1;
  const ids = [...request.ids];
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let held = "";
  let heldIds: number[] = [];
  let generated = "";
  let unnamed = 0;
  for (let said = 0; said < request.maxTokens; said++) {
    const salt = said >= request.saltAfter ? request.salt : 0;
    let id = nextId(ids, seed ^ salt);
    // The grammar's state: what this request generated, from its beginning.
    while (grammar !== null && id !== endId && !allowed(generated + (words[id - wordIdFirst] ?? "")))
      id = wordIdFirst + ((id + 1) % words.length);
    ids.push(id);
    if (id === endId) {
      yield { kind: "final", finishReason: "stop", tokensOut: said + 1 };
      return;
    }
    const text = decoder.decode(bytesOf(id), { stream: true });
    generated += text;
    if (text === "") {
      unnamed++;
      continue;
    }
    for (; unnamed > 0; unnamed--) heldIds.push(unnamedId);
    heldIds.push(id);
    held += text;
    const found = stop.map((one) => held.indexOf(one)).filter((at) => at >= 0);
    if (found.length > 0) {
      const before = held.slice(0, Math.min(...found));
      if (before !== "") yield { kind: "piece", text: before, ids: heldIds };
      yield { kind: "final", finishReason: "stop", tokensOut: said + 1 };
      return;
    }
    if (openStopUnits(held, stop) > 0) continue;
    yield { kind: "piece", text: held, ids: heldIds };
    held = "";
    heldIds = [];
  }
  // What it held at the limit is lost, with the real engine too.
  yield { kind: "final", finishReason: "length", tokensOut: request.maxTokens };
}

export interface Story {
  readonly text: string;
  readonly pieces: readonly SentPiece[];
  readonly finishReason: "stop" | "length";
  readonly tokensIn: number;
  readonly tokensOut: number;
  readonly exact: Exactness;
  readonly ways: readonly string[];
  readonly impossible: boolean;
}

export const build: EngineBuild = {
  engine: "model",
  version: "1",
  model: "sha256:m",
  modelStamp: null,
  settings: "s",
  device: "cpu",
};

export interface StoryOptions {
  readonly spec: Pick<TaskSpec, "sampling" | "seed" | "determinism" | "maxTokens">;
  readonly prompt: string;
  /** After how many frames each attempt is cut; the one behind the last is not. */
  readonly cuts: readonly number[];
  readonly builds?: readonly EngineBuild[];
  /** Which attempts (0-based) say something else, and after how many tokens. */
  readonly salt?: (attempt: number) => { salt: number; after: number };
  readonly namesIds?: boolean;
}

/** A task from its start to its end, cut on the way: what an attempt runner does with the planner. */
export function story(options: StoryOptions): Story {
  const { spec, prompt, cuts } = options;
  const promptIds = [beginId, ...tokenize(prompt)];
  let sent: SentPiece[] = [];
  let exact: Exactness = "yes";
  const ways: string[] = [];
  let diverged = false;
  for (let attempt = 0; ; attempt++) {
    const names = new Map(unnamedTexts(sent).map((text) => [text, tokenize(text)]));
    if (options.namesIds !== false) sent = nameIds(sent, (text) => names.get(text) ?? null);
    const next = options.builds?.[attempt] ?? build;
    const input: ContinuationInput = { spec, sent, first: options.builds?.[0] ?? build, next, exact };
    const plan: ContinuationPlan = diverged ? planAfterDivergence(input) : planContinuation(input);
    diverged = false;
    ways.push(plan.way === "prefix" ? `prefix by ${plan.by}` : plan.way);
    const done = (finishReason: "stop" | "length", tokensOut: number): Story => ({
      text: sent.map(({ text }) => text).join(""),
      ...{ pieces: sent, finishReason, tokensIn: promptIds.length, ways, impossible: false },
      exact: plan.exact,
      tokensOut,
    });
    if (plan.way === "impossible") return { ...done("length", 0), impossible: true };
    if (plan.way === "finished") return done(plan.finishReason, spec.maxTokens);
    const going = plan.way === "fresh" ? null : plan;
    const ids =
      plan.way !== "prefix"
        ? promptIds
        : plan.by === "ids"
          ? [...promptIds, ...plan.ids]
          : [beginId, ...tokenize(prompt + plan.text)];
    const { salt, after } = options.salt?.(attempt) ?? { salt: 0, after: 0 };
    const request = {
      ids,
      maxTokens: going?.maxTokens ?? spec.maxTokens,
      seed: going?.seed ?? spec.seed,
      sampling: spec.sampling,
      salt,
      saltAfter: after,
    };
    const nothing = { expected: "", expectedIds: null, openText: "" };
    const output = new ContinuedOutput(going ?? nothing, spec.sampling.stop, (text, pieceIds) =>
      sent.push({ text, ids: pieceIds }),
    );
    exact = plan.exact;
    let frames = cuts[attempt] ?? Number.POSITIVE_INFINITY;
    for (const frame of generate(request)) {
      if (frames-- <= 0) break;
      const state = frame.kind === "final" ? output.end() : output.take(frame.text, frame.ids);
      if (state === "stopped") return done("stop", (going?.tokensBefore ?? 0) + output.tokensSaid);
      if (state === "diverged") {
        diverged = true;
        exact = "no";
        break;
      }
      if (frame.kind === "final") {
        const told = { tokensIn: ids.length, tokensOut: frame.tokensOut };
        return done(frame.finishReason, tokensOfEnded(going, promptIds.length, told).tokensOut);
      }
    }
  }
}
