/**
 * A client that has no file descriptor left when it calls its engine: run it under a low limit of open files.
 * Prints the kind of failure.
 */
import { openSync } from "node:fs";
import { LlamaCppClient } from "../../src/infra/engines/llamacpp-client.ts";
import { clock, failureOf, never } from "./engine.ts";

const client = new LlamaCppClient({
  clock,
  key: "k",
  socketPath: "/nowhere/engine.sock",
  workload: "completion",
});
const before = await failureOf(client.health(never));
if (before !== "unreachable") throw new Error(before);
console.write("");
try {
  for (;;) openSync("/dev/null", "r");
} catch (error) {
  if ((error as { code?: unknown }).code !== "EMFILE") throw error;
}
console.log(await failureOf(client.health(never)));
process.exit(0);
