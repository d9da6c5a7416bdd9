/** Fetches a model, for tests that kill whoever does. argv: address, path. Prints the digest. */
import { parseAllowedHost } from "../../src/domain/fetch-policy.ts";
import { HttpModelSource } from "../../src/infra/models/http-model-source.ts";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";

const [url = "", path = ""] = process.argv.slice(2);
const entry = parseAllowedHost(new URL(url).host);
const source = new HttpModelSource({
  clock: new SystemClock(),
  entropy: new SystemEntropy(),
  allowed: entry === null ? [] : [entry],
  headerProblem: () => null,
});
const target = { url, path, digest: null, sizeBytes: null };
const { digest } = await source.fetch(target, () => undefined, new AbortController().signal);
process.stdout.write(digest);
