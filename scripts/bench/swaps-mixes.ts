/**
 * What is asked of the sides of swaps.ts: models in turn, all at once or by clients that wait for each answer, and one
 * request among constant traffic for another model. Always holds: a mix ends when all that it sent has ended; what failed
 * is counted with its message, not thrown.
 */
import { type Answer, type ModelName, modelNames, type SwapSide } from "./swaps-sides.ts";

export interface MixFigures {
  readonly asked: number;
  readonly failures: readonly string[];
  readonly makespanMs: number;
  /** From sending to the first token. */
  readonly waitsMs: readonly number[];
  /** Engine processes started for it; the first model is loaded before. */
  readonly swaps: number;
}

const modelAt = (index: number): ModelName => modelNames[index % modelNames.length] ?? "a";
let asked = 0;

/** The model that a mix starts with is loaded, whatever came before. */
export async function settle(side: SwapSide, model: ModelName = "a"): Promise<void> {
  await (await side.prepare(model, asked++))();
}

class Mix {
  readonly #side: SwapSide;
  readonly #startedBefore: number;
  readonly #answers: Answer[] = [];
  readonly #failures: string[] = [];
  #startedMs = 0;

  constructor(side: SwapSide) {
    this.#side = side;
    this.#startedBefore = side.started();
  }

  begin(): void {
    this.#startedMs = performance.now();
  }

  async take(answer: Promise<Answer>): Promise<void> {
    try {
      this.#answers.push(await answer);
    } catch (error) {
      this.#failures.push(error instanceof Error ? error.message : String(error));
    }
  }

  async ask(model: ModelName): Promise<void> {
    const send = await this.#side.prepare(model, asked++);
    await this.take(send());
  }

  figures(): MixFigures {
    return {
      asked: this.#answers.length + this.#failures.length,
      failures: this.#failures,
      makespanMs: performance.now() - this.#startedMs,
      waitsMs: this.#answers.map(({ sentMs, firstTokenMs }) => firstTokenMs - sentMs),
      swaps: this.#side.started() - this.#startedBefore,
    };
  }
}

/** A B C A B C ..., each `rounds` times, all sent in this order before any is answered. */
export async function allAtOnce(side: SwapSide, rounds: number): Promise<MixFigures> {
  await settle(side);
  const mix = new Mix(side);
  const ready: (() => Promise<Answer>)[] = [];
  for (let n = 0; n < rounds * modelNames.length; n++) ready.push(await side.prepare(modelAt(n), asked++));
  mix.begin();
  await Promise.all(ready.map((send) => mix.take(send())));
  return mix.figures();
}

/** Each client asks A B C A B C ... and waits for every answer; the second begins with B, the third with C. */
export async function inTurn(side: SwapSide, clients: number, rounds: number): Promise<MixFigures> {
  await settle(side);
  const mix = new Mix(side);
  mix.begin();
  await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      for (let n = 0; n < rounds * modelNames.length; n++) await mix.ask(modelAt(client + n));
    }),
  );
  return mix.figures();
}

export interface BetweenFigures {
  /** From sending the one request for B to its first token. */
  readonly waitMs: number;
  /** B was served only after the traffic for A was ended for its sake. */
  readonly afterTraffic: boolean;
  readonly answersOfA: number;
  /** The longest from first token to end. */
  readonly longestRunMs: number;
  readonly failures: readonly string[];
}

/** How long A's traffic runs before B is asked for. */
const headStartMs = 1_000;
const failuresMax = 100;

/** `clients` ask for A without a pause; one request for B. A's traffic ends with B, or `trafficMs` after B was asked for. */
export async function oneBetween(
  side: SwapSide,
  clients: number,
  trafficMs: number,
): Promise<BetweenFigures> {
  await settle(side);
  const failures: string[] = [];
  const answers: Answer[] = [];
  let over = false;
  const traffic = Array.from({ length: clients }, async () => {
    while (!over) {
      try {
        answers.push(await (await side.prepare("a", asked++))());
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error));
        over ||= failures.length >= failuresMax;
      }
    }
  });
  await Bun.sleep(headStartMs);
  let afterTraffic = false;
  const enough = setTimeout(() => {
    over = true;
    afterTraffic = true;
  }, trafficMs);
  const one = await side.prepare("b", asked++);
  const b = await one().finally(() => {
    clearTimeout(enough);
    over = true;
  });
  await Promise.all(traffic);
  return {
    waitMs: b.firstTokenMs - b.sentMs,
    afterTraffic,
    answersOfA: answers.length,
    longestRunMs: Math.max(...answers.map(({ firstTokenMs, endMs }) => endMs - firstTokenMs)),
    failures,
  };
}

/** `from` is loaded; `to` is asked for while it runs. @returns ms from the end of the one to the first token of the other. */
export async function handover(side: SwapSide, from: ModelName, to: ModelName): Promise<number> {
  const first = await side.prepare(from, asked++);
  const second = await side.prepare(to, asked++);
  const running = first();
  // Beyond the time to its first token, well before its end.
  await Bun.sleep(leadMs);
  const [{ endMs }, { sentMs, firstTokenMs }] = await Promise.all([running, second()]);
  if (sentMs > endMs) throw new Error("the first had ended before the second was asked for: more tokens");
  return firstTokenMs - endMs;
}

const leadMs = 50;
