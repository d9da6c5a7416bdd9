/**
 * What answers at a remote server's address: read from its own answers, as far as those tell. Pure; the client
 * (openai-client.ts) asks and keeps what comes out.
 *
 * Sources: `owned_by` and `max_model_len` of GET /v1/models are those of vLLM (vllm/entrypoints/openai/models) and
 * SGLang (sglang/srt/entrypoints/openai/protocol.py); llama-server's were seen on build 11669; GET /info is TGI's.
 */
import type { RemoteKind } from "../../domain/pool.ts";
import type { Json } from "./engine-calls.ts";

export type ServerKind = Exclude<RemoteKind, "auto">;

/** One entry of GET /v1/models. */
export interface ModelCard {
  readonly id: string;
  readonly aliases: readonly string[];
  readonly ownedBy: string | null;
  /** Tokens of context; null: it does not say. */
  readonly ctx: number | null;
  readonly ctxTrain: number | null;
  readonly sizeBytes: number | null;
  readonly params: number | null;
}

export interface ServerFacts {
  readonly kind: ServerKind;
  /** As it names it; null: it does not. */
  readonly version: string | null;
  /** Tokens of context of one task; null: it does not say. */
  readonly ctx: number | null;
}

export const isJson = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);
export const num = (value: unknown): number | null =>
  typeof value === "number" && Number.isFinite(value) ? value : null;
const count = (value: unknown): number | null =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 1 ? value : null;
export const text = (value: unknown): string | null =>
  typeof value === "string" && value !== "" ? value : null;

/** `answer`: the body of GET /v1/models. */
export function modelCards(answer: Json): ModelCard[] {
  const list = Array.isArray(answer.data) ? answer.data : [];
  return list.flatMap((item) => {
    const id = isJson(item) ? text(item.id) : null;
    if (!isJson(item) || id === null) return [];
    const meta = isJson(item.meta) ? item.meta : {};
    const aliases = Array.isArray(item.aliases) ? item.aliases : [];
    return {
      id,
      aliases: aliases.filter((alias) => typeof alias === "string"),
      ownedBy: text(item.owned_by),
      ctx:
        count(item.max_model_len) ??
        count(item.context_length) ??
        count(item.context_window) ??
        count(meta.n_ctx),
      ctxTrain: count(meta.n_ctx_train),
      sizeBytes: num(meta.size),
      params: num(meta.n_params),
    };
  });
}

export const cardOf = (cards: readonly ModelCard[], model: string): ModelCard | null =>
  cards.find(({ id, aliases }) => id === model || aliases.includes(model)) ?? null;

const kindsByOwner: ReadonlyMap<string | null, ServerKind> = new Map([
  ["vllm", "vllm"],
  ["sglang", "sglang"],
  ["llamacpp", "llama-server"],
]);

/** Null: nothing in the list tells. */
export function kindByCards(cards: readonly ModelCard[]): ServerKind | null {
  for (const { ownedBy } of cards) {
    const kind = kindsByOwner.get(ownedBy);
    if (kind !== undefined) return kind;
  }
  return null;
}

/** Where each kind tells more of itself, and how: `path` lies beside /v1. */
export const moreAbout: Readonly<
  Record<
    ServerKind,
    { readonly path: string; readonly read: (answer: Json) => Omit<ServerFacts, "kind"> } | null
  >
> = {
  vllm: { path: "/version", read: ({ version }) => ({ version: text(version), ctx: null }) },
  sglang: { path: "/get_server_info", read: ({ version }) => ({ version: text(version), ctx: null }) },
  tgi: {
    path: "/info",
    read: (info) => ({ version: text(info.version), ctx: count(info.max_total_tokens) }),
  },
  "llama-server": {
    path: "/props",
    read: (props) => {
      const settings = isJson(props.default_generation_settings) ? props.default_generation_settings : {};
      return { version: text(props.build_info), ctx: count(settings.n_ctx) };
    },
  },
  other: null,
};

/** As /info answers; whatever else has a path of that name. */
export const isTgi = (info: Json): boolean =>
  text(info.model_id) !== null && count(info.max_total_tokens) !== null;

/** e.g. [0, 11]; null: no version that is known. */
export function versionNumbers(version: string | null): readonly [number, number] | null {
  const match = /^v?(\d+)\.(\d+)/.exec(version ?? "");
  return match === null ? null : [Number(match[1]), Number(match[2])];
}
