/** What a client may send that is no call: the server answers with an error or closes the connection, and serves the next one. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { loadService, type Method, RpcClient, RpcServer } from "./index.ts";
import { PATIENT } from "./testing/patient.ts";

interface Echo {
  readonly text: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly number: number;
  readonly inner: { readonly text: string } | null;
}
type EchoMethods = { readonly Echo: Method<Echo, Echo, "none">; readonly Many: Method<Echo, Echo, "response"> };

const PROTO = `
syntax = "proto3";
package test;
service Echoes { rpc Echo(Message) returns (Message); rpc Many(Message) returns (stream Message); }
message Inner { string text = 1; }
message Message { string text = 1; map<string, string> labels = 2; int64 number = 3; Inner inner = 4; }
`;

const PLAIN = { noNullPrototype: true } as const;

let directory: string;
let methods: EchoMethods;
let server: RpcServer;
let address: string;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "shale-rpc-"));
  const file = join(directory, "echo.proto");
  writeFileSync(file, PROTO);
  methods = loadService<EchoMethods>([pathToFileURL(file)], "test.Echoes", { Echo: "none", Many: "response" });
  server = new RpcServer();
  server.add(methods, {
    Echo: (request) => request,
    async *Many(request) {
      for (let at = 0; at < request.number; at++) yield { ...request, number: at };
    },
  });
  address = join(directory, "s.sock");
  await server.listen(address);
});
after(async () => {
  await server.close(0);
  rmSync(directory, { recursive: true });
});

const answers = async () => {
  using client = new RpcClient(address, PATIENT);
  assert.equal((await client.unary(methods.Echo, { text: "alive" })).text, "alive");
};

/** The same path, with bytes of a test's own. */
function raw(bytes: Uint8Array): Method<Uint8Array, Uint8Array, "none"> {
  return {
    ...methods.Echo,
    encodeRequest: () => Buffer.from(bytes),
    decodeRequest: (value) => value,
    encodeResponse: () => Buffer.of(),
    decodeResponse: (value) => value,
  };
}

describe("RpcServer", () => {
  for (const [name, bytes] of [
    ["an HTTP/1.1 request", Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n")],
    ["noise", Buffer.from([...Array(4096).keys()].map((at) => (at * 7919) % 256))],
    [
      "an HTTP/2 preface and then noise",
      Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff", "latin1"),
    ],
    ["nothing", Buffer.of()],
  ] as const) {
    test(`survives ${name} on its socket`, async () => {
      const socket = connect({ path: address });
      await once(socket, "connect");
      socket.on("error", () => undefined); // reset by the server, which is its right
      socket.end(bytes);
      socket.resume();
      await once(socket, "close");
      await answers();
    });
  }

  test("survives a client that goes away in the middle of a call and of a stream", async () => {
    for (let at = 0; at < 10; at++) {
      const client = new RpcClient(address, PATIENT);
      const stream = client.stream(methods.Many, { number: 100_000 });
      await stream.next();
      const call = client.unary(methods.Echo, { text: "x" }).catch(() => undefined);
      client[Symbol.dispose]();
      await stream.return(undefined).catch(() => undefined);
      await call;
    }
    await answers();
    while (server.running > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  test("answers an unknown method with UNIMPLEMENTED", async () => {
    using client = new RpcClient(address, PATIENT);
    const unknown = { ...methods.Echo, path: "/test.Echoes/Other" };
    await assert.rejects(client.unary(unknown, { text: "x" }), { code: "UNIMPLEMENTED" });
  });

  test("answers any bytes as a message with a message or an error", async () => {
    using client = new RpcClient(address, PATIENT);
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
        try {
          await client.unary(raw(bytes), new Uint8Array());
        } catch (error) {
          assert.ok(ShaleError.is(error), String(error));
        }
      }),
      { numRuns: 300 },
    );
    await answers();
  });

  test("echoes any message as it was, except numbers above 2^53", async () => {
    using client = new RpcClient(address, PATIENT);
    const message = fc.record(
      {
        text: fc.string({ unit: "grapheme" }),
        labels: fc.dictionary(fc.oneof(fc.string(), fc.constant("__proto__")), fc.string()),
        number: fc.integer({ min: -(2 ** 31), max: 2 ** 31 }).map((number) => number * 1_000_003),
        inner: fc.option(fc.record({ text: fc.string() }, PLAIN)),
      },
      PLAIN,
    );
    await fc.assert(
      fc.asyncProperty(message, async (sent) => {
        const { labels, ...rest } = await client.unary(methods.Echo, sent);
        assert.deepEqual(
          { ...rest, labels: Object.entries(labels).sort() },
          { ...sent, labels: Object.entries(sent.labels).sort() },
        );
      }),
      { numRuns: 200 },
    );
  });
});
