/** The bound on unsent bytes: what it does is seen in test/http/slow-viewers.test.ts; here, that it never fails. */
import { expect, test } from "bun:test";
import { boundUnsent } from "../../src/infra/listening-socket.ts";
import { RecordingLog } from "../services/rig.ts";

test("is set on a socket that listens, whatever its address, and told where nobody does", async () => {
  const log = new RecordingLog();
  const ports: number[] = [];
  for (const hostname of ["127.0.0.1", "0.0.0.0", "::"]) {
    const server = Bun.serve({ port: 0, hostname, fetch: () => new Response("") });
    const port = server.port ?? 0;
    await boundUnsent(port, 128 * 1024, log);
    await server.stop(true);
    ports.push(port);
  }
  expect(log.lines).toEqual([]);
  await boundUnsent(ports[0] ?? 0, 128 * 1024, log);
  expect(log.of("send_buffers_unbounded").length).toBe(1);
});
