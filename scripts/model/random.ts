/**
 * Owns the only source of randomness of the demo models. Called by the weight builders in this folder.
 * Always holds: integer and IEEE 754 basic arithmetic only (no Math.sin, Math.log or Math.random), so that
 * one seed gives the same numbers on every machine and the model files can be compared by hash.
 */

/** Uniform numbers in [0, 1) from a 32-bit seed: the mulberry32 generator (Tommy Ettinger, public domain). */
export function uniformSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Roughly normal numbers, mean 0 and variance 1 (Irwin–Hall: twelve uniforms minus six). */
export function normalSource(seed: number): () => number {
  const uniform = uniformSource(seed);
  return () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += uniform();
    return sum;
  };
}

/** Vector of independent −1 and +1. */
export function signVector(uniform: () => number, length: number): Float64Array {
  const vector = new Float64Array(length);
  for (let i = 0; i < length; i++) vector[i] = uniform() < 0.5 ? -1 : 1;
  return vector;
}

/** 32-bit FNV-1a hash, to give a word a seed of its own. */
export function seedOf(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}
