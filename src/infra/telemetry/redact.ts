/**
 * What must never reach a log: pure. pino-log.ts sends every field and every error text through here.
 *
 * Always: a value under a secret's name is replaced whatever its type; text that carries a credential in a
 * well-known form loses the credential and keeps the rest, for an upstream's error may quote our own header.
 */
import { limits } from "../../domain/limits.ts";
import type { LogFields } from "../../ports/telemetry.ts";

export const redacted = "[redacted]";

/** Names compare without case and punctuation: api_key, apiKey and X-API-Key are one. */
const secretNames: ReadonlySet<string> = new Set([
  "key",
  "keys",
  "bearer",
  "cookie",
  "setcookie",
  "credential",
  "credentials",
  "passwd",
  "token",
  "tokentext",
  // What a client wrote and what a model answered it are as private as a key.
  "prompt",
  "prompts",
  "messages",
  "content",
  "inputs",
  "input",
  "query",
  "text",
  "texts",
  "output",
  "completion",
  "transcript",
  "body",
]);
/** Endings, so that client_secret, hf_token or rendered_prompt need no entry of their own. */
const secretEndings =
  /(apikey|authorization|password|secret|secrets|accesstoken|refreshtoken|authtoken|hftoken|prompt|privatekey)$/;

const punctuation = /[^a-z0-9]/g;

/** The program's field names are a few dozen: each is judged once. */
const judged = new Map<string, boolean>();

export function isSecretName(name: string): boolean {
  const known = judged.get(name);
  if (known !== undefined) return known;
  const plain = name.toLowerCase().replace(punctuation, "");
  const secret = secretNames.has(plain) || secretEndings.test(plain);
  if (judged.size < limits.logNamesMax) judged.set(name, secret);
  return secret;
}

/** Authorization: Basic x, api_key=x, "password":"x" */
const assigned =
  /((?:api[-_ ]?key|authorization|access[-_]?token|password|secret)["']?\s*[=:]\s*["']?(?:(?:bearer|basic)\s+)?)[^\s"',;&}]+/gi;
/** --api-key x, --hf-token x: an engine's command line */
const flag = /(--[a-z-]*(?:key|token|password|secret)\s+)\S+/gi;
const bearer = /\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}/gi;

/** A word that each of the forms above has: almost no text of a log line does, and one look is cheaper than three. */
const suspicious = /key|token|auth|password|secret|bearer/i;

/** The text with credentials in well-known forms taken out. */
export const scrub = (text: string): string =>
  suspicious.test(text)
    ? text.replace(assigned, `$1${redacted}`).replace(flag, `$1${redacted}`).replace(bearer, `$1${redacted}`)
    : text;

/** The value of a field as it may be logged. */
export function redactValue(name: string, value: NonNullable<LogFields[string]> | null): unknown {
  if (value === null || typeof value === "boolean") return value;
  if (isSecretName(name)) return redacted;
  if (typeof value === "string") return scrub(value);
  return typeof value === "number" ? value : value.map(scrub);
}
