/**
 * What a request says when nothing cuts it, and whether a stream that was cut said the same. Called by the chaos run and
 * by the run of reloads.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { SseEvent } from "../../test/support/sse-client.ts";
import { Broken, type ChaosStream, type Json } from "./stream.ts";

/** What a request says when nothing cuts it. */
export interface Whole {
  readonly body: Json;
  readonly text: string;
  readonly end: Json;
}

export interface Cuts {
  readonly temperature: number;
  readonly strict: boolean;
  /** Moments of performance.now() at which something was cut. */
  readonly cutsMs: readonly number[];
}

/** A cut so shortly behind the last token may have taken the engine's last word only. */
const lastWordMs = 1_000;

const beginnings = ["The harbour", "Once upon a time", "Zoë said «", "😀 東京 → ", "Two friends"];
const words = readFileSync(join(import.meta.dir, "../model/corpus.txt"), "utf8").match(/[a-z]{2,}/g) ?? [];

/** Of the request with that number: each another one. */
export const promptOf = (at: number): string =>
  `${beginnings[at % beginnings.length]} ${words.slice(at * 7, at * 7 + at).join(" ")}`;

/** The stream of a quiet daemon to its end. Throws where that was cut. */
export async function wholeOf(stream: ChaosStream, body: Json): Promise<Whole> {
  const { type, data } = await stream.run();
  const { continuations, exact } = data;
  if (type !== "end" || continuations !== 0 || exact !== "yes" || stream.tokens === 0)
    throw new Error(`uncut, the request ${JSON.stringify(body)} ended with ${type} ${JSON.stringify(data)}`);
  return { body, text: stream.text, end: data };
}

/** The stream has ended as the uncut one, byte for byte, and says rightly how exact it is. Throws `Broken`. */
export function assertSame(
  stream: ChaosStream,
  { type, data }: SseEvent,
  whole: Whole,
  { temperature, strict, cutsMs }: Cuts,
): void {
  if (type !== "end") throw new Broken(`ended with ${type}: ${JSON.stringify(data)}`);
  const continuations = Number(data.continuations);
  const { exact } = data;
  const sampled = temperature > 0 && !strict;
  if (strict || continuations === 0) {
    if (exact !== "yes") throw new Broken(`exact is ${exact} behind ${continuations} continuations`);
  } else if (exact === "yes") {
    const cuts = cutsMs.filter((ms) => ms > stream.lastTokenMs - lastWordMs).length;
    if (cuts < continuations) throw new Broken(`exact is yes behind ${continuations} continuations`);
  } else if (exact !== (sampled ? "no" : "unverified"))
    throw new Broken(`exact is ${exact} behind ${continuations} continuations`);
  // Cut in the middle, a sampled answer is made of other pieces than the uncut one.
  for (const name of ["tokens_in", "tokens_out", "finish_reason"])
    if (data[name] !== whole.end[name] && !(sampled && continuations > 0))
      throw new Broken(`${name} is ${data[name]}, uncut ${whole.end[name]}`);
  if (exact === "no") return;
  if (!Buffer.from(stream.text).equals(Buffer.from(whole.text)))
    throw new Broken(`the text differs from the uncut one ${differenceOf(stream.text, whole.text)}`);
}

function differenceOf(text: string, whole: string): string {
  let at = 0;
  while (at < text.length && text[at] === whole[at]) at++;
  const shown = (one: string) => JSON.stringify(one.slice(Math.max(0, at - 20), at + 20));
  return `at character ${at} of ${whole.length} (it has ${text.length}): ${shown(text)}, uncut ${shown(whole)}`;
}
