/**
 * What every engine client owes its callers (ports/engine.ts), as one suite over any adapter. engine.test.ts
 * runs it over the mock and over the real llama-server, as a child and as a server elsewhere.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { ChatMessage, Workload } from "../../src/domain/task.ts";
import type { EngineClient } from "../../src/ports/engine.ts";
import { failureOf, never, RecordingSink, request, within } from "../support/engine.ts";

export interface EngineUnderTest {
  readonly client: EngineClient;
  stop(): Promise<void>;
}

/** What a continuation by ids needs beside the port's calls: the ids of a prompt as a generation reads it. */
export interface Tokenizes {
  tokenize(text: string, asPrompt: boolean, signal: AbortSignal): Promise<number[]>;
}

export interface EngineFactory {
  readonly name: string;
  readonly slots: number;
  readonly ctxPerSlot: number;
  readonly followsGrammar: boolean;
  /** It says which tokens its text is made of. */
  readonly namesTokens: boolean;
  /** It renders chats to text; else it continues them itself. */
  readonly rendersChats: boolean;
  /** A prompt that is read long enough to be aborted meanwhile. */
  readonly longPrompt: string;
  /** Prompts of two engines: text that is longer than the context. */
  readonly tooLongPrompt: string;
  start(workload: Workload): Promise<EngineUnderTest>;
  /** A client for an engine that is not there (any more). */
  unreachable(): Promise<EngineUnderTest>;
}

const waitMs = 10_000;

export function engineConformance(factory: EngineFactory): void {
  describe(`engine conformance: ${factory.name}`, () => {
    let engine: EngineUnderTest;
    beforeAll(async () => {
      engine = await factory.start("completion");
    });
    afterAll(() => engine.stop());
    const client = () => engine.client;
    const tokenize = (text: string, asPrompt: boolean) =>
      (client() as EngineClient & Tokenizes).tokenize(text, asPrompt, never);
    const generate = (options: Parameters<typeof request>[0] = {}, sink = new RecordingSink()) =>
      within(waitMs, "the generation ends", client().generate(request(options), sink, never)).then(
        (result) => ({
          result,
          sink,
        }),
      );

    describe("control calls", () => {
      test("health, identity and warm-up tell of a working engine", async () => {
        expect(await client().health(never)).toBe("ok");
        const identity = await client().identity(never);
        expect(identity).toMatchObject({
          engine: client().kind,
          slots: factory.slots,
          ctxPerSlot: factory.ctxPerSlot,
          workloads: ["completion"],
        });
        expect(identity.engineVersion).not.toBe("unknown");
        const speed = await client().warmUp(never);
        expect(speed.prefillTps).toBeGreaterThan(0);
        expect(speed.decodeTps).toBeGreaterThan(0);
        expect(Number.isFinite(speed.prefillTps + speed.decodeTps)).toBe(true);
        const brief = await client().warmUp(never, true);
        expect(Math.min(brief.prefillTps, brief.decodeTps)).toBeGreaterThan(0);
      });

      test("tokens are counted with the special ones, and agree with what a generation says", async () => {
        const text = "The river runs to the sea.";
        const counted = await client().countTokens(text, never);
        expect(await client().countTokens("", never)).toBeLessThan(counted);
        const { result } = await generate({ prompt: text, maxTokens: 1 });
        expect(result.tokensIn).toBe(counted);
      });

      test("the chat template carries every message", async () => {
        const messages: ChatMessage[] = [
          { role: "system", content: "Be brief." },
          { role: "user", content: "Hello there" },
        ];
        if (!factory.rendersChats) {
          expect(client().prompts?.chat).toBe("continues");
          expect(await failureOf(client().applyTemplate(messages, never))).toBe("unsupported");
          const chat = { messages, said: "" };
          const { result } = await generate({ prompt: chat, maxTokens: 1 });
          expect(result.tokensIn).toBe(await client().countTokens(chat, never));
          return;
        }
        const prompt = await client().applyTemplate(messages, never);
        expect(prompt).toContain("Be brief.");
        expect(prompt.indexOf("Hello there")).toBeGreaterThan(prompt.indexOf("Be brief."));
      });

      test("slots are numbered from 0 and idle", async () => {
        const slots = await client().slots(never);
        expect(slots.map((one) => one.slot)).toEqual(Array.from({ length: factory.slots }, (_, i) => i));
        expect(slots.some((one) => one.busy)).toBe(false);
      });

      test("an aborted signal stops a call before it is made", async () => {
        const aborted = AbortSignal.abort();
        expect(await failureOf(client().health(aborted))).toBe("aborted");
        expect(await failureOf(client().countTokens("x", aborted))).toBe("aborted");
        expect(await failureOf(client().generate(request(), new RecordingSink(), aborted))).toBe("aborted");
      });
    });

    describe("generation", () => {
      test("prompt progress comes first, then whole pieces; the counts agree", async () => {
        const order: string[] = [];
        let prompts = 0;
        const { result, sink } = await generate(
          { maxTokens: 24 },
          new RecordingSink((now) => {
            order.push(now.prompts.length > prompts ? "prompt" : "token");
            prompts = now.prompts.length;
          }),
        );
        expect(order[0]).toBe("prompt");
        expect(order.lastIndexOf("prompt")).toBeLessThan(order.indexOf("token"));
        const [total, , done] = sink.prompts.at(-1) ?? [];
        expect(total).toBe(result.tokensIn);
        expect(done).toBe(result.tokensIn);
        expect(sink.pieces.every((piece) => piece !== "" && piece.isWellFormed())).toBe(true);
        expect(result.finishReason).toBe("length");
        expect(result.tokensOut).toBe(24);
        expect(sink.ids.flat().length).toBeLessThanOrEqual(24);
        expect(sink.ids.flat().length > 0).toBe(factory.namesTokens);
      });

      test("the token limit holds, and is at least one", async () => {
        expect((await generate({ maxTokens: 1 })).result).toMatchObject({
          tokensOut: 1,
          finishReason: "length",
        });
        expect((await generate({ maxTokens: 0 })).result).toMatchObject({
          tokensOut: 1,
          finishReason: "length",
        });
      });

      test("temperature 0 gives the same text whatever the seed", async () => {
        const first = await generate({ seed: 1 });
        const second = await generate({ seed: 2, slot: factory.slots - 1 });
        expect(second.sink.text).toBe(first.sink.text);
        expect(second.sink.ids).toEqual(first.sink.ids);
      });

      test("a seed repeats its text at temperature 0.8, and another seed says something else", async () => {
        const warm = (seed: number) => generate({ seed, maxTokens: 32, sampling: { temperature: 0.8 } });
        const text = (await warm(11)).sink.text;
        expect((await warm(11)).sink.text).toBe(text);
        expect((await warm(12)).sink.text).not.toBe(text);
        // The largest seed is a seed as any other, not the engine's "draw one".
        expect((await warm(2 ** 32 - 1)).sink.text).toBe((await warm(2 ** 32 - 1)).sink.text);
      });

      test("a greedy continuation from the text so far is the uncut text", async () => {
        const whole = await generate({ maxTokens: 20 });
        const cut = whole.sink.pieces.slice(0, 8).join("");
        const rest = await generate({
          prompt: `Once upon a time${cut}`,
          maxTokens: 12,
          slot: factory.slots - 1,
        });
        expect(cut + rest.sink.text).toBe(whole.sink.text);
      });

      test("a greedy continuation of a chat, behind the beginning of its answer, is the uncut text", async () => {
        const messages: ChatMessage[] = [{ role: "user", content: "Tell me of the river" }];
        const promptOf = async (said: string) =>
          factory.rendersChats ? (await client().applyTemplate(messages, never)) + said : { messages, said };
        const whole = await generate({ prompt: await promptOf(""), maxTokens: 16 });
        const cut = whole.sink.pieces.slice(0, 6).join("");
        const rest = await generate({ prompt: await promptOf(cut), maxTokens: 10 });
        expect(cut + rest.sink.text).toBe(whole.sink.text);
      });

      if (factory.namesTokens) {
        test("a greedy continuation by ids, of the prompt and of what was said, is the uncut text", async () => {
          const whole = await generate({ maxTokens: 20 });
          const promptIds = await tokenize("Once upon a time", true);
          expect(promptIds).toHaveLength(whole.result.tokensIn);
          for (const cut of [0, 1, 7, 15]) {
            const ids = whole.sink.ids.slice(0, cut).flat();
            const rest = await generate({
              prompt: [...promptIds, ...ids],
              maxTokens: 20 - ids.length,
              slot: cut % factory.slots,
            });
            expect(rest.sink.pieces).toEqual(whole.sink.pieces.slice(cut));
            expect(rest.result.tokensIn).toBe(promptIds.length + ids.length);
            expect(ids.length + rest.result.tokensOut).toBe(whole.result.tokensOut);
          }
        });

        test("the ids that were told are those of the text that was told, also while a stop string is open", async () => {
          const whole = await generate({ maxTokens: 40 });
          const promptIds = await tokenize("Once upon a time", true);
          // The beginnings of words that were said: held back until the next letter tells.
          const stop = whole.sink.pieces.slice(0, 8).map((piece) => `${piece}\u0001`);
          const held = await generate({ maxTokens: 40, sampling: { stop } });
          expect(whole.sink.text.startsWith(held.sink.text)).toBe(true);
          expect(held.sink.pieces.length).toBeLessThan(whole.sink.pieces.length);
          for (let cut = 1; cut < held.sink.pieces.length; cut += 3) {
            const ids = held.sink.ids.slice(0, cut).flat();
            const rest = await generate({ prompt: [...promptIds, ...ids], maxTokens: 40 - ids.length });
            expect(held.sink.pieces.slice(0, cut).join("") + rest.sink.text).toBe(whole.sink.text);
          }
        });
      }

      test("the tokens of a text that is no prompt have no special ones", async () => {
        const plain = await tokenize(" upon a time", false);
        expect(plain.length).toBeGreaterThan(0);
        expect(plain.length).toBeLessThan((await tokenize(" upon a time", true)).length);
      });

      test("a stop string ends the text before it", async () => {
        const whole = (await generate({ maxTokens: 40 })).sink.text;
        const stop = whole.trim().split(" ").slice(3, 5).join(" ");
        const { result, sink } = await generate({ maxTokens: 40, sampling: { stop: ["\u0000never", stop] } });
        expect(result.finishReason).toBe("stop");
        expect(sink.text).not.toContain(stop);
        expect(whole.startsWith(sink.text)).toBe(true);
        expect(result.tokensOut).toBeLessThan(40);
      });

      test("a known prefix comes out of the slot's cache, unless that was refused", async () => {
        const prompt = "The clock in the old window counts every winter. ".repeat(4);
        await generate({ prompt, maxTokens: 2 });
        const again = await generate({ prompt, maxTokens: 2 });
        expect(again.result.tokensCached).toBeGreaterThan(again.result.tokensIn / 2);
        const cold = await generate({ prompt, maxTokens: 2, cachePrompt: false });
        expect(cold.result.tokensCached).toBe(0);
      });

      test("all slots work at once, each as if alone", async () => {
        const prompts = Array.from({ length: factory.slots }, (_, i) => `Number ${i} of the stories`);
        const alone: string[] = [];
        for (const prompt of prompts) alone.push((await generate({ prompt })).sink.text);
        const together = await Promise.all(prompts.map((prompt, slot) => generate({ prompt, slot })));
        expect(together.map(({ sink }) => sink.text)).toEqual(alone);
      });

      test("a prompt longer than the context is told as such", async () => {
        expect(await failureOf(generate({ prompt: factory.tooLongPrompt }))).toBe("context");
        expect((await generate()).result.tokensOut).toBe(16);
      });

      test("a grammar and a JSON schema are followed, or refused as unsupported", async () => {
        const grammar = generate({ maxTokens: 8, sampling: { grammar: 'root ::= "yes" | "no"' } });
        const schema = generate({
          maxTokens: 64,
          sampling: { jsonSchema: { type: "object", properties: { a: { const: 1 } }, required: ["a"] } },
        });
        if (factory.followsGrammar) {
          expect(["yes", "no"]).toContain((await grammar).sink.text);
          expect(JSON.parse((await schema).sink.text)).toEqual({ a: 1 });
          expect(await failureOf(generate({ sampling: { grammar: "root ::= (" } }))).toBe("rejected");
          expect(await failureOf(generate({ sampling: { jsonSchema: { type: "bogus" } } }))).toBe("rejected");
        } else {
          expect(await failureOf(grammar)).toBe("unsupported");
          expect(await failureOf(schema)).toBe("unsupported");
        }
      });
    });

    describe("abort", () => {
      /** Aborts a generation at its nth event; returns what the sink heard by then and in all. */
      async function abortAt(slot: number, prompt: string, isTime: (sink: RecordingSink) => boolean) {
        const abort = new AbortController();
        let heard = -1;
        const sink = new RecordingSink((now) => {
          if (heard >= 0 || !isTime(now)) return;
          heard = now.events;
          abort.abort();
        });
        const call = client().generate(
          request({ prompt, slot, maxTokens: 1500, cachePrompt: false }),
          sink,
          abort.signal,
        );
        expect(await within(waitMs, "the aborted generation rejects", failureOf(call))).toBe("aborted");
        await within(waitMs, "the slot is free", client().awaitSlotFree(slot, never));
        expect(heard).toBeGreaterThan(0);
        expect(sink.events).toBe(heard);
      }

      test("while it decodes: nothing more is heard, the slot is free", async () => {
        await abortAt(0, "Once upon a time", (sink) => sink.pieces.length >= 3);
        expect((await generate()).result.tokensOut).toBe(16);
      });

      test("while it reads the prompt: nothing more is heard, the slot is free", async () => {
        await abortAt(0, factory.longPrompt, (sink) => sink.prompts.length >= 1);
        expect((await generate()).result.tokensOut).toBe(16);
      });

      test("beside a running stream, which goes on undisturbed", async () => {
        const alone = await generate({ prompt: "Two friends", maxTokens: 120 });
        const last = factory.slots - 1;
        const beside = generate({ prompt: "Two friends", maxTokens: 120, slot: last });
        await abortAt(0, "Once upon a time", (sink) => sink.pieces.length >= 2);
        await abortAt(0, factory.longPrompt, (sink) => sink.prompts.length >= 1);
        expect((await beside).sink.text).toBe(alone.sink.text);
        expect(await client().slots(never)).toSatisfy((slots) => slots.every((one) => !one.busy));
      });

      test("a slot that was never used is free", async () => {
        await within(waitMs, "an unused slot", client().awaitSlotFree(0, never));
      });
    });

    describe("other workloads", () => {
      test("an engine for completions says that it does not embed or rerank", async () => {
        expect(await failureOf(client().embed(["a"], never))).toBe("unsupported");
        expect(await failureOf(client().rerank("a", ["a"], never))).toBe("unsupported");
      });

      test("embeddings: one vector a text, the same every time, near for the same words", async () => {
        const embedder = await factory.start("embedding");
        try {
          for (const speedKnown of [false, true])
            expect((await embedder.client.warmUp(never, speedKnown)).prefillTps).toBeGreaterThan(0);
          const texts = ["the small river", "the small river", "a patient engine answers"];
          const { vectors, tokensIn } = await embedder.client.embed(texts, never);
          expect(vectors).toHaveLength(3);
          expect(tokensIn).toBeGreaterThan(3);
          const [first = [], second = [], third = []] = vectors;
          expect(cosine(first, first)).toBeCloseTo(1, 4);
          expect(cosine(first, second)).toBeCloseTo(1, 4);
          expect(cosine(first, third)).toBeLessThan(0.999);
          expect(await failureOf(embedder.client.generate(request(), new RecordingSink(), never))).toBe(
            "unsupported",
          );
        } finally {
          await embedder.stop();
        }
      });

      test("rerank: one score for every text", async () => {
        const ranker = await factory.start("rerank");
        try {
          for (const speedKnown of [false, true])
            expect((await ranker.client.warmUp(never, speedKnown)).prefillTps).toBeGreaterThan(0);
          const { scores, tokensIn } = await ranker.client.rerank(
            "old river",
            ["blue sky", "the old river"],
            never,
          );
          expect(scores.map((one) => one.index).sort()).toEqual([0, 1]);
          expect(scores.every((one) => Number.isFinite(one.score))).toBe(true);
          expect(tokensIn).toBeGreaterThan(0);
        } finally {
          await ranker.stop();
        }
      });
    });

    describe("the end", () => {
      test("an engine that is not there is told as a lost connection", async () => {
        const gone = await factory.unreachable();
        try {
          const lost = ["connection", "unreachable"];
          expect(lost).toContain(await failureOf(gone.client.health(never)));
          expect(lost).toContain(
            await failureOf(gone.client.generate(request(), new RecordingSink(), never)),
          );
          const freed = failureOf(gone.client.awaitSlotFree(0, never));
          expect(lost).toContain(await within(waitMs, "the wait for its slot", freed));
        } finally {
          await gone.stop();
        }
      });

      test("close ends whatever runs, at once and once", async () => {
        const closing = await factory.start("completion");
        const sink = new RecordingSink((now) => {
          if (now.pieces.length === 2) closing.client.close();
        });
        const call = closing.client.generate(request({ maxTokens: 500 }), sink, never);
        expect(await within(waitMs, "the closed generation rejects", failureOf(call))).toBe("aborted");
        expect(sink.pieces).toHaveLength(2);
        closing.client.close();
        expect(await failureOf(closing.client.health(never))).toBe("aborted");
        await closing.stop();
      });
    });
  });
}

function cosine(a: readonly number[], b: readonly number[]): number {
  const dot = (x: readonly number[], y: readonly number[]) =>
    x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
