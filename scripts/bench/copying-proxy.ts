/**
 * A proxy that only copies: the yardstick for the daemon's CPU per token on the machine at hand. Started by
 * processes.ts with the upstream's base URL; prints its port.
 */
const upstream = process.argv[2];
if (upstream === undefined) throw new Error("usage: copying-proxy.ts URL");

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  idleTimeout: 0,
  fetch: async (request) => {
    const path = new URL(request.url).pathname;
    const body = await request.text();
    const headers = { "content-type": "application/json" };
    const answer = await fetch(upstream + path, { method: "POST", body, headers, keepalive: false });
    return new Response(answer.body, { headers: { "content-type": "text/event-stream" } });
  },
});
process.stdout.write(`listening on ${server.port}\n`);
