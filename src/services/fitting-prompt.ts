/** A task's prompt as the engine gets it, and whether prompt and output fit into its context. */
import { assert } from "../domain/assert.ts";
import type { ChatMessage, TaskSpec } from "../domain/task.ts";
import { type ChatPrompt, type EngineClient, EngineError, isEngineError } from "../ports/engine.ts";

/**
 * Rendered, where the engine does not do that itself, and counted where admission could not: it had no engine then, or
 * no need to ask.
 * @throws EngineError of the kind context where it does not fit, unsupported where the engine cannot keep strict
 */
export async function fittingPrompt(
  spec: TaskSpec,
  client: EngineClient,
  ctxPerSlot: number,
  signal: AbortSignal,
): Promise<string | ChatPrompt> {
  if (spec.determinism === "strict" && !keepsStrict(client)) throw new EngineError("unsupported", notStrict);
  const ctx = Math.min(spec.ctx, ctxPerSlot);
  let prompt: string | ChatPrompt;
  if (spec.renderedPrompt !== null) prompt = spec.renderedPrompt;
  else if (spec.input.kind === "messages") prompt = await chatPrompt(spec.input.messages, client, signal);
  else {
    assert(spec.input.kind === "prompt", "a completion has a prompt or messages");
    prompt = spec.input.prompt;
  }
  if (spec.tokensInExact) return prompt;
  if (promptTokensBound(prompt) + spec.maxTokens <= ctx) return prompt;
  const tokens = await tokensOf(prompt, client, signal);
  if (tokens !== null && tokens + spec.maxTokens > ctx)
    throw new EngineError("context", contextMessage(tokens, spec.maxTokens, ctx));
  return prompt;
}

/** Whether it can do without cached context, as determinism strict promises. */
export const keepsStrict = ({ prompts }: EngineClient): boolean => prompts?.cold !== false;

export const notStrict =
  "this engine cannot be told to use no cached context, as determinism strict promises: leave it out, or take another pool";

/** A task as another model has to read it: what its own tokenizer and template said is forgotten. */
export const forModel = (spec: TaskSpec, modelRef: string): TaskSpec => ({
  ...spec,
  modelRef,
  tokensInExact: false,
  renderedPrompt: null,
});

/** Of what was accepted for another model and is too much for the one that its pool has. */
export const unfitMessage = (modelRef: string, problem: string): string =>
  `its pool has another model now (${modelRef}), and ${problem}; or submit it again to another pool`;

/** The same where it is the same model. */
export const otherEnginesMessage = (problem: string): string =>
  `its pool has other engines now, and ${problem}; or submit it again to another pool`;

/** Text where the engine's template can be asked for, else the messages as they are. */
export async function chatPrompt(
  messages: readonly ChatMessage[],
  client: EngineClient,
  signal: AbortSignal,
): Promise<string | ChatPrompt> {
  const rendered = client.prompts === undefined || client.prompts.chat === "template";
  return rendered ? await client.applyTemplate(messages, signal) : { messages, said: "" };
}

/** Null: this engine counts nothing, and refuses itself what does not fit. */
export async function tokensOf(
  prompt: string | ChatPrompt,
  client: EngineClient,
  signal: AbortSignal,
): Promise<number | null> {
  if (client.prompts?.tokenizes === false) return null;
  try {
    return await client.countTokens(prompt, signal);
  } catch (error) {
    if (isEngineError(error) && error.engineErrorKind === "unsupported") return null;
    throw error;
  }
}

/** An upper bound: a token is at least one byte, the engine adds a begin token and a leading space. Of a chat nearly. */
export function promptTokensBound(prompt: string | ChatPrompt): number {
  if (typeof prompt === "string") return Buffer.byteLength(prompt, "utf8") + promptOverheadTokens;
  return chatTokensBound(prompt.messages);
}
const promptOverheadTokens = 2;

/** What a chat template puts around the messages, and around each, before an engine has rendered it: generous. */
const templateTokens = 64;
const templateTokensPerMessage = 16;

export const chatTokensBound = (messages: readonly ChatMessage[]): number =>
  messages.reduce(
    (sum, { role, content }) => sum + promptTokensBound(content) + role.length + templateTokensPerMessage,
    templateTokens,
  );

export const contextMessage = (tokensIn: number, maxTokens: number, ctx: number): string =>
  `prompt (${tokensIn} tokens) and max_tokens (${maxTokens}) exceed the context of ${ctx} tokens: ` +
  `shorten the prompt or ask for at most ${Math.max(0, ctx - tokensIn)} tokens`;
