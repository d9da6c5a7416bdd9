/**
 * A process that asks a server elsewhere for its health and prints what came of it: which authorities it trusts is
 * read by the runtime when a process starts, from NODE_EXTRA_CA_CERTS.
 */
import { OpenAiAdapter } from "../../src/infra/engines/openai.ts";
import { clock, entropy, never } from "./engine.ts";
import { poolSpec } from "./replicas.ts";

const remote = { baseUrl: process.argv[2] ?? "", kind: "auto" as const, key: null };
const client = new OpenAiAdapter({ clock, entropy }).connectInProcess(poolSpec({ engine: "openai", remote }));
console.log(await client.health(never).catch((error: Error) => error.message));
client.close();
