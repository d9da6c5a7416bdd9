/**
 * Sampler profiles: what a task samples with where it says nothing. A profile never changes once released, a
 * new one gets a new version: the version is part of what makes a run repeatable.
 */
import type { Sampling } from "./task.ts";

export const samplerProfiles: Readonly<Record<string, Sampling>> = {
  v1: {
    temperature: 0.8,
    topK: 40,
    topP: 0.95,
    minP: 0.05,
    repeatPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    stop: [],
    grammar: null,
    jsonSchema: null,
  },
};
