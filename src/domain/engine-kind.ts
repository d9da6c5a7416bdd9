/** The kinds of engine that a pool may have: of the configuration, of tasks, of labels. */
export const engineKinds = ["llamacpp", "openai", "mock"] as const;
export type EngineKind = (typeof engineKinds)[number];
