/**
 * A loopback S3 service with one bucket in memory, for the tests of the S3 blob store: PUT, GET with ranges, HEAD, DELETE,
 * ListObjectsV2 and multipart uploads, path style. Every request's SigV4 signature is checked, so that a client
 * that signs wrongly fails here as it would there.
 *
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";

export interface S3ServerOptions {
  readonly bucket: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly region: string;
}

interface Stored {
  readonly bytes: Uint8Array;
  readonly modified: Date;
}

export class S3Server {
  readonly objects = new Map<string, Stored>();
  readonly #uploads = new Map<string, Map<number, Uint8Array>>();
  readonly #server: Bun.Server<undefined>;
  /** Requests that were refused for their signature. */
  refused = 0;
  requests = 0;
  /** Whether it answers everything with 503. */
  isDown = false;
  /** What it keeps instead of what it was sent. */
  onStored: ((name: string, stored: Stored) => Stored) | null = null;

  constructor(private readonly options: S3ServerOptions) {
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: (request) => this.#answer(request),
    });
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#server.port}`;
  }

  stop(): Promise<void> {
    return this.#server.stop(true);
  }

  async #answer(request: Request): Promise<Response> {
    this.requests += 1;
    const body = new Uint8Array(await request.arrayBuffer());
    if (this.isDown) return problem(503, "ServiceUnavailable");
    if (!this.#isSigned(request)) {
      this.refused += 1;
      return problem(403, "SignatureDoesNotMatch");
    }
    const url = new URL(request.url);
    const [, bucket = "", ...rest] = decodeURIComponent(url.pathname).split("/");
    if (bucket !== this.options.bucket) return problem(404, "NoSuchBucket");
    const name = rest.join("/");
    if (name === "") return this.#list(url.searchParams);
    switch (request.method) {
      case "PUT":
        return this.#put(name, url.searchParams, body);
      case "POST":
        return this.#post(name, url.searchParams);
      case "DELETE":
        if (url.searchParams.has("uploadId")) this.#uploads.delete(url.searchParams.get("uploadId") ?? "");
        else this.objects.delete(name);
        return new Response(null, { status: 204 });
      default:
        return this.#get(request, name);
    }
  }

  #keep(name: string, bytes: Uint8Array): void {
    const stored = { bytes, modified: new Date() };
    this.objects.set(name, this.onStored?.(name, stored) ?? stored);
  }

  #put(name: string, query: URLSearchParams, body: Uint8Array): Response {
    const etag = { etag: `"${createHash("md5").update(body).digest("hex")}"` };
    const part = query.get("partNumber");
    if (part === null) this.#keep(name, body);
    else {
      const upload = this.#uploads.get(query.get("uploadId") ?? "");
      if (upload === undefined) return problem(404, "NoSuchUpload");
      upload.set(Number(part), body);
    }
    return new Response(null, { headers: etag });
  }

  #post(name: string, query: URLSearchParams): Response {
    const uploadId = query.get("uploadId");
    if (uploadId === null) {
      const id = crypto.randomUUID();
      this.#uploads.set(id, new Map());
      return xml(
        `<InitiateMultipartUploadResult><Bucket>${this.options.bucket}</Bucket><Key>${name}</Key><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`,
      );
    }
    const parts = this.#uploads.get(uploadId);
    if (parts === undefined) return problem(404, "NoSuchUpload");
    const bytes = Buffer.concat([...parts].sort(([a], [b]) => a - b).map(([, part]) => part));
    this.#keep(name, bytes);
    this.#uploads.delete(uploadId);
    return xml(
      `<CompleteMultipartUploadResult><Key>${name}</Key><ETag>"x-1"</ETag></CompleteMultipartUploadResult>`,
    );
  }

  #get(request: Request, name: string): Response {
    const found = this.objects.get(name);
    if (found === undefined) return problem(404, "NoSuchKey");
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
    const start = Number(range?.[1] ?? 0);
    const last = range?.[2]
      ? Math.min(Number(range[2]), found.bytes.byteLength - 1)
      : found.bytes.byteLength - 1;
    const bytes = found.bytes.slice(start, last + 1);
    const headers = {
      "last-modified": found.modified.toUTCString(),
      etag: `"${createHash("md5").update(found.bytes).digest("hex")}"`,
      "content-length": String(bytes.byteLength),
      "content-type": "application/octet-stream",
    };
    if (request.method === "HEAD") return new Response(null, { headers });
    return new Response(bytes, { status: range === null ? 200 : 206, headers });
  }

  #list(query: URLSearchParams): Response {
    const prefix = query.get("prefix") ?? "";
    const after = query.get("start-after") ?? "";
    const keysMax = Number(query.get("max-keys") ?? 1000);
    const names = [...this.objects.keys()].filter((name) => name.startsWith(prefix) && name > after).sort();
    const page = names.slice(0, keysMax);
    const contents = page.map((name) => {
      const { bytes, modified } = this.objects.get(name) as Stored;
      return `<Contents><Key>${name}</Key><LastModified>${modified.toISOString()}</LastModified><ETag>"x"</ETag><Size>${bytes.byteLength}</Size></Contents>`;
    });
    return xml(
      `<ListBucketResult><Name>${this.options.bucket}</Name><Prefix>${prefix}</Prefix><KeyCount>${page.length}</KeyCount><MaxKeys>${keysMax}</MaxKeys><IsTruncated>${names.length > page.length}</IsTruncated>${contents.join("")}</ListBucketResult>`,
    );
  }

  #isSigned(request: Request): boolean {
    const { accessKeyId, secretAccessKey, region } = this.options;
    const header = request.headers.get("authorization") ?? "";
    const match =
      /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/.exec(
        header,
      );
    if (match === null) return false;
    const [, id, day = "", where, signed = "", signature = ""] = match;
    if (id !== accessKeyId || where !== region) return false;
    const url = new URL(request.url);
    const query = [...url.searchParams]
      .map(([name, value]) => `${encode(name)}=${encode(value)}`)
      .sort()
      .join("&");
    const headers = signed
      .split(";")
      .map((name) => `${name}:${(request.headers.get(name) ?? "").trim()}\n`)
      .join("");
    const payload = request.headers.get("x-amz-content-sha256") ?? "";
    const canonical = [request.method, url.pathname, query, headers, signed, payload].join("\n");
    const scope = `${day}/${region}/s3/aws4_request`;
    const sha = createHash("sha256").update(canonical).digest("hex");
    const toSign = ["AWS4-HMAC-SHA256", request.headers.get("x-amz-date") ?? "", scope, sha].join("\n");
    const hmac = (key: string | Buffer, text: string): Buffer =>
      createHmac("sha256", key).update(text).digest();
    const key = [day, region, "s3", "aws4_request"].reduce<string | Buffer>(hmac, `AWS4${secretAccessKey}`);
    return timingSafeEqual(hmac(key, toSign), Buffer.from(signature, "hex"));
  }
}

/** RFC 3986 as SigV4 wants it. */
const encode = (text: string): string =>
  encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

const xml = (text: string, status = 200): Response =>
  new Response(`<?xml version="1.0" encoding="UTF-8"?>${text}`, {
    status,
    headers: { "content-type": "application/xml" },
  });

const problem = (status: number, code: string): Response =>
  xml(`<Error><Code>${code}</Code><Message>${code}</Message></Error>`, status);
