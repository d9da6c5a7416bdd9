/**
 * What is looked at in a GBNF grammar before an engine sees it. llama.cpp parses groups by recursion: thirty
 * thousand open brackets end its process with a segmentation fault, and every other task in it.
 * Grammar syntax: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
 */

/** Deepest nesting of groups, outside literals, character classes and comments. Linear in the text. */
export function grammarDepth(grammar: string): number {
  let depth = 0;
  let deepest = 0;
  let inside: '"' | "[" | "#" | null = null;
  for (let at = 0; at < grammar.length; at++) {
    const char = grammar[at];
    if (inside === "#") {
      if (char === "\n") inside = null;
    } else if (inside !== null) {
      if (char === "\\") at++;
      else if (char === (inside === "[" ? "]" : '"')) inside = null;
    } else if (char === '"' || char === "[" || char === "#") inside = char;
    else if (char === "(") deepest = Math.max(deepest, ++depth);
    else if (char === ")") depth = Math.max(0, depth - 1);
  }
  return deepest;
}
