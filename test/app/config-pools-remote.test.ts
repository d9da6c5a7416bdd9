/** Pools of servers elsewhere and of rpc-servers: what the file says, and keys that nobody sees by accident. */
import { describe, expect, test } from "bun:test";
import { inspect } from "node:util";
import { renderConfig } from "../../src/app/config-render.ts";
import { launch } from "../../src/infra/engines/llamacpp-launch.ts";
import { compiled, compileText, machine, problemsOf } from "../support/config-files.ts";

const secret = "sk-of-the-server-elsewhere";
const disk = { ...machine, "/etc/orchestratord/gpu-key": `${secret}\n` };
const env = { GPU_KEY: secret };
const remote = (more: string, url = "https://gpu.example.com/v1"): string =>
  `models: { dir: /models }\npools:\n  - { id: gpu, engine: openai, model: Qwen/Qwen3-8B, base_url: "${url}", ${more} }`;
const local = (more: string): string =>
  `models: { dir: /models }\npools:\n  - { id: a, model: chat.gguf, ${more} }`;
const problems = (text: string): string[] => problemsOf(text, { disk, env });

describe("a server elsewhere", () => {
  test("with a key from a file", () => {
    const [pool] = compiled(remote("api_key_file: gpu-key, slots: 32, server: vllm"), { disk }).pools;
    expect(pool).toMatchObject({
      engine: "openai",
      modelRef: "Qwen/Qwen3-8B",
      modelPath: null,
      engineBin: null,
      slots: 32,
      ctx: null,
      workloads: ["completion"],
      remote: {
        baseUrl: "https://gpu.example.com/v1",
        kind: "vllm",
        key: { from: "file", name: "/etc/orchestratord/gpu-key" },
      },
    });
    expect(pool?.remote?.key?.secret.reveal()).toBe(secret);
  });

  test("with a key from a variable, whatever it is called, or with none; and without an engine on this machine", () => {
    const result = compileText(remote("api_key_env: ORCHD_GPU_KEY"), {
      disk: {},
      env: { ORCHD_GPU_KEY: secret, PATH: "" },
    });
    if (!result.ok) throw new Error("not valid");
    expect(result.warnings).toEqual([]);
    expect(result.config.pools[0]?.remote?.key?.secret.reveal()).toBe(secret);
    expect(compiled(remote("ctx: 4096"), { disk: {} }).pools[0]?.remote?.key).toBeNull();
  });

  test("what --check-config prints is the same again, and nothing shows the key", () => {
    for (const key of ["api_key_file: gpu-key", "api_key_env: GPU_KEY"]) {
      const config = compiled(remote(`${key}, server: sglang, workloads: [embedding]`), { disk, env });
      const text = renderConfig(config);
      expect(compiled(text, { disk, env }).pools).toEqual(config.pools);
      expect(compiled(text, { disk, env }).pools[0]?.remote?.key?.secret.reveal()).toBe(secret);
      for (const dump of [text, JSON.stringify(config), inspect(config, { depth: 9, showHidden: true })]) {
        expect(dump).toContain("gpu.example.com");
        expect(dump).not.toContain(secret);
      }
    }
  });

  test("a slash at the end is none, a path before /v1 stays, and what is not encrypted is warned of", () => {
    const result = compileText(remote("ctx: 64", "http://10.0.0.9:8000/team/v1/"), { disk });
    if (!result.ok) throw new Error("not valid");
    expect(result.config.pools[0]?.remote?.baseUrl).toBe("http://10.0.0.9:8000/team/v1");
    expect(result.warnings).toEqual([]);
    const keyed = compileText(remote("api_key_file: gpu-key", "http://10.0.0.9:8000/v1"), { disk });
    expect(keyed.ok && keyed.warnings).toEqual([
      "pool gpu: http://10.0.0.9:8000/v1 is not encrypted: prompts and its key can be read on the way",
    ]);
    const here = compileText(remote("api_key_file: gpu-key", "http://127.0.0.1:8000/v1"), { disk });
    expect(here.ok && here.warnings).toEqual([]);
  });

  const wrong: [string, string, string][] = [
    [
      "no address",
      "models: {}\npools: [{ id: a, engine: openai, model: x }]",
      "found openai without base_url",
    ],
    ["no URL", remote("ctx: 64", "gpu:8000"), 'found "gpu:8000", expected https://HOST/v1 or http'],
    [
      "a key in the address",
      remote("ctx: 64", "https://u:pw@gpu/v1"),
      "found credentials or parameters in the addre",
    ],
    [
      "a parameter",
      remote("ctx: 64", "https://gpu/v1?key=1"),
      "found credentials or parameters in the address",
    ],
    [
      "both keys",
      remote("api_key_file: gpu-key, api_key_env: GPU_KEY"),
      "found both of api_key_file and api_key_env",
    ],
    ["a variable that is not set", remote("api_key_env: NOT_SET"), "the variable NOT_SET is not set"],
    [
      "a file that is not there",
      remote("api_key_file: nope"),
      "cannot read the file /etc/orchestratord/nope",
    ],
    ["a model file", remote("ctx: 64").replace("Qwen/Qwen3-8B", "file:chat.gguf"), "as the server names it"],
    ["flags", remote("args: [-v]"), "engine openai starts nothing here: give them to the server"],
    ["variables", remote("env: { A: b }"), "engine openai starts nothing here: leave env out"],
    ["two replicas", remote("replicas: 2"), "expected 1 with engine openai: slots is how many"],
    ["rpc", remote('rpc: ["h:1"]'), "only engine llamacpp takes this"],
    ["mock", remote("mock: {}"), "only engine mock takes this"],
    ["an address with llamacpp", local('base_url: "http://x/v1"'), "only engine openai takes this"],
    ["a kind of server with llamacpp", local("server: vllm"), "only engine openai takes this"],
    ["a key with llamacpp", local("api_key_env: GPU_KEY"), "only engine openai takes this"],
  ];
  test.each(wrong)("wrong: %s", (_, text, part) => {
    const found = problems(text);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
    expect(found[0]).not.toContain("pw@");
  });
});

describe("rpc-servers (ORCHD-REMOTE-5)", () => {
  const commandOf = (more: string): readonly string[] => {
    const [pool] = compiled(local(more), { disk }).pools;
    if (pool === undefined) throw new Error("no pool");
    const around = { replicaId: "a-0", runDir: "/run", header: null, env: {}, hardwareThreads: 2 };
    return launch({ pool, ...around, accelerated: false, setpriv: null }).command;
  };

  test("are told to the engine in one flag, before what the operator adds", () => {
    const command = commandOf('rpc: ["gpu-2:50052", "[fd00::3]:50052"], args: [-v]');
    expect(command[command.indexOf("--rpc") + 1]).toBe("gpu-2:50052,[fd00::3]:50052");
    expect(command.at(-1)).toBe("-v");
    expect(commandOf("slots: 1")).not.toContain("--rpc");
  });

  test("stand in what --check-config prints", () => {
    const config = compiled(local('rpc: ["gpu-2:50052"]'), { disk });
    expect(compiled(renderConfig(config), { disk }).pools).toEqual(config.pools);
  });

  const wrong: [string, string][] = [
    ['rpc: ["gpu-2"]', "expected HOST:PORT"],
    ['rpc: ["gpu-2:0"]', "found port 0, expected 1 to 65535"],
    ['rpc: ["gpu-2:70000"]', "found port 70000"],
    ['rpc: ["gpu-2:1,gpu-3:1"]', "expected HOST:PORT"],
    ["args: [--rpc, 'gpu-2:1']", "the daemon sets this flag itself; use rpc"],
  ];
  test.each(wrong)("wrong: %s", (more, part) => {
    const found = problems(local(more));
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(part);
  });
});
