/** How deep a grammar nests, so that one that would crash an engine's parser is refused. */
import { expect, test } from "bun:test";
import { grammarDepth } from "../../src/domain/grammar.ts";

const rows: [grammar: string, depth: number][] = [
  ["", 0],
  ['root ::= "a"', 0],
  ['root ::= ("a" | "b")+', 1],
  ['root ::= (("a") ("b" (c)))', 3],
  // Brackets that mean themselves.
  ['root ::= "(((" [(((] # (((', 0],
  ['root ::= "\\"(" (x)', 1],
  ["root ::= [\\](] (x)", 1],
  ["# (((\nroot ::= (x)", 1],
  // Unbalanced: the engine refuses these by itself.
  ["root ::= )))(", 1],
];
for (const [grammar, depth] of rows)
  test(`${JSON.stringify(grammar)} nests ${depth} deep`, () => {
    expect(grammarDepth(grammar)).toBe(depth);
  });

test("a very deep one is measured in one pass", () => {
  expect(grammarDepth(`root ::= ${"(".repeat(30_000)}"a"${")".repeat(30_000)}`)).toBe(30_000);
});
