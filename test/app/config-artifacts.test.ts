/** The section `artifacts`: a folder or a bucket, and credentials that nobody sees by accident (ORCHD-ART-5, ORCHD-CLI-1). */
import { describe, expect, test } from "bun:test";
import { inspect } from "node:util";
import { renderConfig } from "../../src/app/config-render.ts";
import { compiled, compileText, problemsOf } from "../support/config-files.ts";

const id = "AKIA-OF-THE-TEST";
const secret = "s3cr3t/of+the/test";
const disk = { "/etc/orchestratord/s3-id": `${id}\n`, "/etc/orchestratord/s3-key": secret, "/blank": " \n" };
const env = { S3_ID: id, S3_KEY: secret };
const filed = "access_key_id_file: s3-id, secret_access_key_file: /etc/orchestratord/s3-key";
const s3 = (more: string, keys = filed): string =>
  `artifacts: { s3: { endpoint: "https://s3.example.com", bucket: things, ${more}${keys} } }`;
const problems = (text: string): string[] => problemsOf(text, { disk, env });

describe("a bucket", () => {
  test("from files", () => {
    const { s3: spec } = compiled(s3(""), { disk }).artifacts;
    expect(spec).toMatchObject({
      endpoint: "https://s3.example.com",
      bucket: "things",
      region: "us-east-1",
      prefix: "",
      accessKeyId: { from: "file", name: "/etc/orchestratord/s3-id" },
    });
    expect([spec?.accessKeyId.secret.reveal(), spec?.secretAccessKey.secret.reveal()]).toEqual([id, secret]);
  });

  test("from variables, whatever they are called", () => {
    const keys = "access_key_id_env: S3_ID, secret_access_key_env: ORCHD_API_KEYS";
    const result = compileText(s3("region: eu-1, prefix: a/b-c/, ", keys), {
      env: { S3_ID: id, ORCHD_API_KEYS: secret },
    });
    if (!result.ok) throw new Error("not valid");
    expect(result.warnings).toEqual([]);
    expect(result.config.artifacts.s3?.prefix).toBe("a/b-c/");
    expect(result.config.artifacts.s3?.secretAccessKey.secret.reveal()).toBe(secret);
  });

  test("what --check-config prints is the same again, and nothing shows a credential", () => {
    for (const keys of [filed, "access_key_id_env: S3_ID, secret_access_key_env: S3_KEY"]) {
      const config = compiled(s3("region: eu-1, prefix: a/, ", keys), { disk, env });
      const text = renderConfig(config);
      expect(compiled(text, { disk, env }).artifacts).toEqual(config.artifacts);
      expect(compiled(text, { disk, env }).artifacts.s3?.secretAccessKey.secret.reveal()).toBe(secret);
      for (const dump of [text, JSON.stringify(config), inspect(config, { depth: 9, showHidden: true })]) {
        expect(dump).toContain("things");
        expect(dump).not.toContain(id);
        expect(dump).not.toContain(secret);
      }
    }
  });

  test("warns of files that everyone can read and of a connection that everyone can", () => {
    const text = s3("").replace("https://s3.example.com", "http://10.0.0.9:9000");
    const result = compileText(text, { disk, modes: { "/etc/orchestratord/s3-key": 0o644 } });
    expect(result.ok && result.warnings).toEqual([
      "artifacts.s3.endpoint http://10.0.0.9:9000 is not encrypted: artifacts can be read on the way",
      "the file /etc/orchestratord/s3-key with credentials can be read by everyone; chmod 600 it",
    ]);
    const here = compileText(text.replace("10.0.0.9", "127.0.0.1"), { disk });
    expect(here.ok && here.warnings).toEqual([]);
  });

  const wrong: [string, string, string][] = [
    [
      "no id",
      s3("", "secret_access_key_env: S3_KEY"),
      "found neither of access_key_id_file and access_key_id_env",
    ],
    ["two ids", s3("access_key_id_env: S3_ID, "), "found both of access_key_id_file and access_key_id_env"],
    [
      "no secret",
      s3("", "access_key_id_env: S3_ID"),
      "found neither of secret_access_key_file and secret_access",
    ],
    [
      "a file that is not there",
      s3("", filed.replace("s3-id", "gone")),
      "cannot read the file /etc/orchestratord/gone",
    ],
    [
      "a blank file",
      s3("", filed.replace("s3-id", "/blank")),
      "the file /blank holds 0 characters, expected 1 to 512",
    ],
    [
      "a variable that is not set",
      s3("", "access_key_id_env: S3_ID, secret_access_key_env: NOT_SET"),
      "artifacts.s3.secret_access_key_env: the variable NOT_SET is not set",
    ],
    [
      "the secret itself",
      s3(`secret_access_key: ${secret}, `),
      "unknown key; did you mean secret_access_key_",
    ],
    [
      "the secret for a variable's name",
      s3("", `access_key_id_env: S3_ID, secret_access_key_env: "${secret}"`),
      "found a text of 18 characters, expected the name of an environment variable",
    ],
    [
      "an endpoint with a path",
      s3("").replace(".com", ".com/things"),
      "expected https://HOST or http://HOST:PORT",
    ],
    [
      "an endpoint of another kind",
      s3("").replace("https", "ftp"),
      "expected https://HOST or http://HOST:PORT",
    ],
    ["no address", s3("").replace("https://s3.example.com", "s3"), 'found "s3", expected https://HOST'],
    [
      "credentials in the address",
      s3("").replace("//", `//u:${encodeURIComponent(secret)}@`),
      "found credentials in the",
    ],
    ["a bucket with capitals", s3("").replace("things", "Things"), "expected 3 to 63 of a-z, 0-9"],
    ["a prefix that climbs", s3("prefix: ../, "), "expected nothing, or names with a slash behind each"],
    [
      "a prefix without its slash",
      s3("prefix: orchd, "),
      "expected nothing, or names with a slash behind each",
    ],
    ["a region with blanks", s3("region: 'a b', "), "expected a region's name"],
    [
      "a bucket and a folder",
      s3("").replace("{ s3", "{ root: /x, s3"),
      "found root and s3, expected one of them",
    ],
    ["no bucket", s3("").replace("bucket: things, ", ""), "artifacts.s3.bucket: missing"],
  ];
  test.each(wrong)("%s is a problem", (_, text, part) => {
    const found = problems(text);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
    expect(found[0]).not.toContain(secret);
    expect(found[0]).not.toContain(encodeURIComponent(secret));
  });
});

test("a folder of its own, or one in the state folder", () => {
  expect(compiled("artifacts: { root: kept, max_age_days: 2 }").artifacts).toMatchObject({
    root: "/etc/orchestratord/kept",
    s3: null,
    maxAgeMs: 172_800_000,
  });
  expect(compiled("state_dir: /s").artifacts.root).toBe("/s/artifacts");
});

test("what finished tasks leave: full unless it says redacted or off", () => {
  expect(compiled("").artifacts.transcripts).toBe("full");
  for (const policy of ["full", "redacted", "off"] as const) {
    const config = compiled(`artifacts: { transcripts: ${policy} }`);
    expect(config.artifacts.transcripts).toBe(policy);
    expect(compiled(renderConfig(config)).artifacts.transcripts).toBe(policy);
  }
  expect(problemsOf("artifacts: { transcripts: some }").join()).toContain("expected full, redacted or off");
});
