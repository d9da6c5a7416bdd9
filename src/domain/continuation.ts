/**
 * How a task goes on after its attempt was cut: the plan of the next attempt, what `end.exact` may still say, and
 * what is counted once although several attempts worked at it. Pure; the attempt runner asks before it calls the
 * engine and feeds the answer through continued-output.ts.
 *
 * | cut was in                     | the next attempt                                                           |
 * |--------------------------------|----------------------------------------------------------------------------|
 * | nothing sent                   | fresh: as the first one, still exact                                       |
 * | max_tokens reached             | finished: only the engine's last word was lost                             |
 * | grammar, JSON schema           | replay: an engine begins a grammar at its root, whatever the prompt says   |
 * | strict, same build             | replay                                                                     |
 * | a stop string begun, same build| replay: the engine looks for stop strings in what it says itself only      |
 * | a chat that its engine renders | replay where it cannot go on behind the beginning of an answer             |
 * | everything else                | prefix: by ids, or by text where ids are missing or the model is another   |
 *
 * Always holds: what a plan says was sent is never sent again; `exact` never gets better.
 */
import { assert } from "./assert.ts";
import type { EndEvent } from "./events.ts";
import { limits } from "./limits.ts";
import { openStopUnits } from "./stop-strings.ts";
import type { TaskSpec } from "./task.ts";

export type Exactness = EndEvent["exact"];

/** An id that the engine did not name: llama-server keeps back the frames of tokens that end inside a character. */
export const unnamedId = -1;

/** A piece as it was logged: whole characters, and the tokens that it is made of ([]: the engine did not say). */
export interface SentPiece {
  readonly text: string;
  readonly ids: readonly number[];
}

/** What decides whether two engines say the same; null: not known, which is equal to nothing. */
export interface EngineBuild {
  readonly engine: string;
  readonly version: string | null;
  /** The model's digest where it is known, else its path. */
  readonly model: string | null;
  /** Tells two files of one path apart. */
  readonly modelStamp: string | null;
  /** A digest of what the engine was started with. */
  readonly settings: string;
  readonly device: string | null;
}

export interface ContinuationInput {
  readonly spec: Pick<TaskSpec, "sampling" | "seed" | "determinism" | "maxTokens">;
  readonly sent: readonly SentPiece[];
  /** Of the attempt that said the first piece, and of the one to come. */
  readonly first: EngineBuild;
  readonly next: EngineBuild;
  /** What is left of exactness by now. */
  readonly exact: Exactness;
  /** How the next engine can be put behind what was sent. Absent: by ids or by text, whichever is better. */
  readonly resumes?: "text" | "never";
}

interface Going {
  readonly seed: number;
  readonly maxTokens: number;
  /** Text that the engine will say again: compared, and not sent. */
  readonly expected: string;
  /** Ids of the tokens of `expected` where they are known: what comes behind them is new. */
  readonly expectedIds: readonly number[] | null;
  /** Tokens that lie before what the engine generates now: they count on top of what it says. */
  readonly tokensBefore: number;
  /** The text before the engine's part, where stop strings may straddle the cut; "" where none may. */
  readonly openText: string;
  /** For the end, should this attempt be the last one and not differ. */
  readonly exact: Exactness;
}

export type ContinuationPlan =
  | { readonly way: "fresh"; readonly exact: Exactness }
  | { readonly way: "finished"; readonly finishReason: "length"; readonly exact: Exactness }
  | (Going & { readonly way: "replay" })
  /** The prompt's own tokens with the special ones, then these. */
  | (Going & { readonly way: "prefix"; readonly by: "ids"; readonly ids: readonly number[] })
  /** The rendered prompt, then this text. */
  | (Going & { readonly way: "prefix"; readonly by: "text"; readonly text: string })
  /** The replay differed and no prefix can go on: a fruitless attempt, tried again while tasks.max_attempts lets it. */
  | { readonly way: "impossible"; readonly message: string; readonly exact: "no" };

export type GoingPlan = Extract<ContinuationPlan, { readonly way: "replay" | "prefix" }>;

export function planContinuation(input: ContinuationInput): ContinuationPlan {
  const { spec, sent, first, next, exact } = input;
  if (sent.length === 0) return { way: "fresh", exact };
  const { sampling } = spec;
  const sameBuild = isSameBuild(first, next);
  // Greedy as well: whoever decodes, the grammar's state is lost with the engine.
  if (hasGrammar(spec)) return replayOf(input, worse(exact, sameBuild ? "yes" : "no"));
  // With stop strings the last piece may hide one (coveredPieces): the engine has to say how it ended.
  if (sampling.stop.length === 0 && tokensIn(sent) >= spec.maxTokens)
    return { way: "finished", finishReason: "length", exact };
  const sampled = sampling.temperature > 0;
  const stopOpen = openStopUnits(textOf(sent), sampling.stop) > 0;
  // Greedy, too: what a prefix computes in one batch an uncut run computed token by token, and sums round otherwise.
  const replays = stopOpen || spec.determinism === "strict";
  // What no single run has said cannot be said again.
  if (replays && sameBuild && exact !== "no") return replayOf(input, exact);
  if (input.resumes === "never") return replayOf(input, worse(exact, sameBuild ? "yes" : "no"));
  // An uncut run would not have sent the beginning of a stop string. Nor is it said again: the output has to look
  // for the rest of it.
  return prefixOf(input, worse(exact, sampled || !sameBuild || stopOpen ? "no" : "unverified"), !stopOpen);
}

/** After the output of a plan differed from what was sent: from there on, whatever becomes of it. */
export function planAfterDivergence(input: ContinuationInput): ContinuationPlan {
  assert(input.sent.length > 0, "only what was sent can differ");
  if (hasGrammar(input.spec)) {
    const message =
      "the engine did not repeat what it had said, and a grammar cannot be entered in its middle";
    return { way: "impossible", message, exact: "no" };
  }
  if (input.resumes === "never") {
    const message =
      "the engine did not repeat what it had said, and it cannot go on behind the beginning of an answer";
    return { way: "impossible", message, exact: "no" };
  }
  return prefixOf(input, "no", false);
}

function replayOf({ spec, sent }: ContinuationInput, exact: Exactness): GoingPlan {
  return {
    way: "replay",
    seed: spec.seed,
    maxTokens: spec.maxTokens,
    expected: textOf(sent),
    expectedIds: idsOf(sent),
    tokensBefore: 0,
    openText: "",
    exact,
  };
}

/** `repeats`: text of which the ids are in doubt may be said again and compared. */
function prefixOf(input: ContinuationInput, exact: Exactness, repeats: boolean): ContinuationPlan {
  const { spec, sent, first, next } = input;
  const { stop, temperature } = spec.sampling;
  const byIds = input.resumes === undefined;
  const covered = byIds && isSameModel(first, next) ? coveredPieces(input, repeats) : 0;
  const tail = sent.slice(covered);
  const openText = stop.length === 0 ? "" : textOf(sent);
  // Nothing exact is promised of a sampled prefix: it should not draw the same numbers again at other places.
  const seedAt = (tokens: number) => (temperature > 0 ? continuedSeed(spec.seed, tokens) : spec.seed);
  if (covered > 0 || (byIds && tail.length === sent.length && repeats && repeatsTail(input, tail))) {
    const ids = idsOf(sent.slice(0, covered)) ?? [];
    if (ids.length >= spec.maxTokens) return { way: "finished", finishReason: "length", exact };
    return {
      ...{ way: "prefix", by: "ids", ids, tokensBefore: ids.length, seed: seedAt(ids.length) },
      maxTokens: spec.maxTokens - ids.length,
      expected: textOf(tail),
      expectedIds: idsOf(tail),
      openText: tail.length > 0 ? "" : openText,
      exact,
    };
  }
  const tokensBefore = tokensIn(sent);
  if (tokensBefore >= spec.maxTokens) return { way: "finished", finishReason: "length", exact };
  return {
    ...{ way: "prefix", by: "text", text: textOf(sent), tokensBefore, seed: seedAt(tokensBefore) },
    maxTokens: spec.maxTokens - tokensBefore,
    expected: "",
    expectedIds: null,
    openText,
    exact,
  };
}

/**
 * How many pieces the ids stand for; the rest is said again. 0: none, by text then.
 *
 * With stop strings the last piece is one to doubt: an engine that finds one sends the text before it with all the
 * ids, those of the stop string too, and its last word, which says so, may be what was lost. Greedy decoding says
 * the piece again; sampled would not, and goes on behind it.
 */
function coveredPieces({ spec, sent }: ContinuationInput, repeats: boolean): number {
  let named = sent.findIndex(({ ids }) => !isNamed(ids));
  if (named < 0) named = sent.length;
  const greedy = spec.sampling.temperature === 0;
  if (named === sent.length) return repeats && greedy && spec.sampling.stop.length > 0 ? named - 1 : named;
  // Only a short tail is worth being said again; one that sampling would not repeat is not.
  return repeats && greedy && sent.length - named <= limits.repeatedPiecesMax ? named : 0;
}

/** The whole of what was sent is a tail that greedy decoding repeats: the prompt's own ids are enough. */
const repeatsTail = ({ spec, first, next }: ContinuationInput, tail: readonly SentPiece[]): boolean =>
  spec.sampling.temperature === 0 && isSameModel(first, next) && tail.length <= limits.repeatedPiecesMax;

const hasGrammar = ({ sampling }: Pick<TaskSpec, "sampling">): boolean =>
  sampling.grammar !== null || sampling.jsonSchema !== null;

/** Cut on the same build, it says again what it had said (begun stop strings left aside). */
export const mustReplay = (spec: Pick<TaskSpec, "sampling" | "determinism">): boolean =>
  hasGrammar(spec) || spec.determinism === "strict";

const isSameModel = (a: EngineBuild, b: EngineBuild): boolean =>
  a.model !== null && a.model === b.model && a.modelStamp === b.modelStamp;

const isSameBuild = (a: EngineBuild, b: EngineBuild): boolean =>
  a.engine === b.engine &&
  a.version !== null &&
  a.version === b.version &&
  isSameModel(a, b) &&
  a.settings === b.settings &&
  a.device === b.device;

const rank: Readonly<Record<Exactness, number>> = { yes: 0, unverified: 1, no: 2 };

const worse = (a: Exactness, b: Exactness): Exactness => (rank[a] >= rank[b] ? a : b);

const textOf = (pieces: readonly SentPiece[]): string => pieces.map(({ text }) => text).join("");

const isNamed = (ids: readonly number[]): boolean => ids.length > 0 && !ids.includes(unnamedId);

/** Null: not all of them are known. */
function idsOf(pieces: readonly SentPiece[]): readonly number[] | null {
  return pieces.every(({ ids }) => isNamed(ids)) ? pieces.flatMap(({ ids }) => ids) : null;
}

/** Tokens that the pieces are made of; a piece of which the engine said nothing is one. */
export const tokensIn = (pieces: readonly SentPiece[]): number =>
  pieces.reduce((sum, { ids }) => sum + Math.max(1, ids.length), 0);

/** The texts of pieces with unnamed ids, each once: what `nameIds` needs the engine's tokens of. */
export function unnamedTexts(sent: readonly SentPiece[]): string[] {
  return [...new Set(sent.filter(({ ids }) => ids.includes(unnamedId)).map(({ text }) => text))];
}

/**
 * Fills unnamed ids from the engine's own tokens of the piece's text (without the special ones). They may begin
 * with a token too many, the space that some tokenizers put before every text; the ids that are known must agree.
 * What cannot be filled stays as it is.
 */
export function nameIds(
  sent: readonly SentPiece[],
  tokensOf: (text: string) => readonly number[] | null,
): SentPiece[] {
  return sent.map((piece) => {
    if (!piece.ids.includes(unnamedId)) return piece;
    const tokens = tokensOf(piece.text) ?? [];
    const surplus = tokens.length - piece.ids.length;
    const ids = tokens.slice(Math.max(0, surplus));
    const agrees = piece.ids.every((id, at) => id === unnamedId || id === ids[at]);
    return agrees && (surplus === 0 || surplus === 1) ? { text: piece.text, ids } : piece;
  });
}

/** A seed for what follows `tokensBefore` tokens; the finalizer of MurmurHash3, 0 to 2^32-1. */
function continuedSeed(seed: number, tokensBefore: number): number {
  let h = (seed ^ Math.imul(tokensBefore, 0x9e3779b9)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Tokens of a task that ended, counted once whatever its attempts computed again. */
export interface TaskTokens {
  readonly tokensIn: number;
  readonly tokensOut: number;
}

/**
 * `tokensInFirst`: the prompt's length as the first attempt's engine told it; `done`: the last attempt's result.
 * A replay says everything itself, a prefix only what follows `tokensBefore`. A `finished` plan has no result.
 */
export function tokensOfEnded(
  plan: Pick<Going, "tokensBefore"> | null,
  tokensInFirst: number | null,
  done: TaskTokens,
): TaskTokens {
  const before = plan?.tokensBefore ?? 0;
  return { tokensIn: tokensInFirst ?? done.tokensIn - before, tokensOut: before + done.tokensOut };
}
