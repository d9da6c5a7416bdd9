/** Which hosts and addresses may be asked for a model. */
import { describe, expect, test } from "bun:test";
import {
  type AllowedHost,
  isPublicAddress,
  judgeHop,
  parseAllowedHost,
} from "../../src/domain/fetch-policy.ts";

const list = (...texts: string[]): AllowedHost[] =>
  texts.map((text) => {
    const entry = parseAllowedHost(text);
    if (entry === null) throw new Error(`no entry: ${text}`);
    return entry;
  });

describe("an entry of the allow list", () => {
  test("is a name, a family of names, or an address, each with its port or the scheme's", () => {
    expect(
      list("HuggingFace.co", "*.hf.co", "a.b:8443", "localhost", "10.0.0.5:8080", "[::1]:80", "fd00::5"),
    ).toEqual([
      { kind: "name", name: "huggingface.co", below: false, port: null },
      { kind: "name", name: "hf.co", below: true, port: null },
      { kind: "name", name: "a.b", below: false, port: 8443 },
      { kind: "address", address: "localhost", port: null },
      { kind: "address", address: "10.0.0.5", port: 8080 },
      { kind: "address", address: "::1", port: 80 },
      { kind: "address", address: "fd00::5", port: null },
    ]);
  });

  test("is nothing else", () => {
    for (const text of [
      "",
      "*",
      "*.",
      "*.co",
      "co",
      "https://a.b",
      "a.b/c",
      "a..b",
      "a.b:0",
      "a.b:70000",
      "-a.b",
      "1.2.3",
      "a_b.c",
      "[::1",
      "999.1.1.1",
    ])
      expect([text, parseAllowedHost(text)]).toEqual([text, null]);
  });
});

describe("a hop", () => {
  const allowed = list("huggingface.co", "*.hf.co", "127.0.0.1:8000", "mirror.example:8443");
  const verdict = (url: string) => judgeHop(url, allowed);

  test("goes to what is listed", () => {
    expect(verdict("https://huggingface.co/a")).toEqual({ ok: true, own: false });
    expect(verdict("https://HUGGINGFACE.CO./a")).toEqual({ ok: true, own: false });
    expect(verdict("https://cdn-lfs.hf.co/a?sig=x")).toEqual({ ok: true, own: false });
    expect(verdict("https://mirror.example:8443/a")).toEqual({ ok: true, own: false });
    expect(verdict("http://127.0.0.1:8000/a")).toEqual({ ok: true, own: true });
    // However the address is spelled, it is the same one.
    expect(verdict("http://0x7f.1:8000/a")).toEqual({ ok: true, own: true });
  });

  test("goes nowhere else", () => {
    for (const url of [
      "http://huggingface.co/a",
      "https://huggingface.co:8443/a",
      "https://hf.co/a",
      "https://evilhf.co/a",
      "https://huggingface.co.evil.example/a",
      "https://mirror.example/a",
      "http://127.0.0.1/a",
      "http://127.0.0.1:8001/a",
      "http://localhost:8000/a",
      "http://[::ffff:127.0.0.1]:8000/a",
      "https://user@huggingface.co/a",
      "file:///etc/passwd",
      "not an address",
    ])
      expect([url, verdict(url).ok]).toEqual([url, false]);
  });
});

describe("an address", () => {
  test("belongs to the internet", () => {
    for (const address of [
      "1.1.1.1",
      "9.255.255.255",
      "11.0.0.0",
      "100.63.255.255",
      "100.128.0.0",
      "172.15.0.1",
      "172.32.0.1",
      "223.255.255.255",
      "2606:4700::1111",
      "2a00::1",
      "::ffff:1.1.1.1",
      "64:ff9b::101:101",
      "2002:101:101::1",
    ])
      expect([address, isPublicAddress(address)]).toEqual([address, true]);
  });

  test("or does not", () => {
    for (const address of [
      "0.0.0.0",
      "10.1.2.3",
      "100.64.0.1",
      "127.0.0.1",
      "169.254.169.254",
      "172.16.0.1",
      "172.31.255.255",
      "192.168.0.1",
      "192.0.2.1",
      "198.18.0.1",
      "224.0.0.1",
      "255.255.255.255",
      "::",
      "::1",
      "::ffff:127.0.0.1",
      "::ffff:10.0.0.1",
      "::127.0.0.1",
      "fe80::1",
      "fe80::1%eth0",
      "fc00::1",
      "fd12::1",
      "ff02::1",
      "2001:db8::1",
      "2001::1",
      "64:ff9b::a00:1",
      "2002:7f00:1::",
      "3fff::1",
      "",
      "localhost",
      "1.2.3",
      "1.2.3.4.5",
      "256.1.1.1",
    ])
      expect([address, isPublicAddress(address)]).toEqual([address, false]);
  });
});
