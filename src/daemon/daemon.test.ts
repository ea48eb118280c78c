import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import http2 from "node:http2";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import { STATUS, statusOf } from "../rpc/index.ts";
import { defaultConfig } from "./index.ts";
import { KIND, SERVING_STATUS } from "./services/messages.ts";
import { NO_MANAGER, startTestDaemon } from "./testing/daemons.ts";
import { parseMetrics } from "./testing/metrics.ts";

const CRI_LABELS = {
  "containerd.io/snapshot.ref": "sha256:aa",
  "containerd.io/snapshot/cri.image-ref": "docker.io/library/busybox:1",
  "containerd.io/snapshot/cri.layer-digest": "sha256:bb",
};

/** The code that the log has for the end of the first call for `key`, once it has ended. */
async function endOf(daemon: Awaited<ReturnType<typeof startTestDaemon>>, key: string): Promise<unknown> {
  for (;;) {
    const line = daemon.log().find((fields) => fields.key === key && fields.code !== undefined);
    if (line !== undefined) return line.code;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** One unary call with a deadline that the server alone keeps; resolves to the status that it answers. */
async function callOverHttp2(address: string, path: string, request: Uint8Array, timeout: string): Promise<number> {
  const session = http2.connect("http://localhost", { createConnection: () => connect(address) });
  try {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc",
      te: "trailers",
      "grpc-timeout": timeout,
    });
    const length = Buffer.alloc(5); // byte 0: not compressed
    length.writeUInt32BE(request.length, 1);
    stream.end(Buffer.concat([length, request]));
    stream.resume();
    // A call that fails before its first message is answered by trailers alone, which HTTP/2 sends as headers.
    return await new Promise((resolve, reject) => {
      const status = (headers: http2.IncomingHttpHeaders) => {
        if (headers["grpc-status"] !== undefined) resolve(Number(headers["grpc-status"]));
      };
      stream.once("response", status).once("trailers", status).once("error", reject);
    });
  } finally {
    session.destroy();
  }
}

describe("the snapshots service", () => {
  test("carries every call and every field", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods } = daemon;
    const labels = { "containerd.io/gc.root": "now", x: "y" };
    const before = BigInt(Date.now()) * 1_000_000n;
    const { mounts } = await client.unary(methods.Prepare, { snapshotter: "shale", key: "a", labels });
    assert.deepEqual(mounts, [{ type: "bind", source: "/mem/a", target: "", options: ["rbind", "rw"] }]);
    assert.deepEqual((await client.unary(methods.Mounts, { key: "a" })).mounts, mounts);
    const { info } = await client.unary(methods.Stat, { key: "a" });
    const { createdAt, updatedAt, ...rest } = info;
    assert.deepEqual(rest, { name: "a", parent: "", kind: KIND.active, labels });
    assert.deepEqual(createdAt, updatedAt);
    assert.ok(BigInt(createdAt!.seconds) * 1_000_000_000n + BigInt(createdAt!.nanos) >= before);
    await client.unary(methods.Commit, { key: "a", name: "A", labels: { z: "1" } });
    await client.unary(methods.View, { key: "v", parent: "A" });
    await client.unary(methods.Prepare, { key: "b" });
    await client.unary(methods.Commit, { key: "b", name: "B", parent: "A" });
    const b = (await client.unary(methods.Stat, { key: "B" })).info;
    assert.deepEqual([b.parent, b.kind], ["A", KIND.committed]);
    const updateMask = { paths: ["labels.z"] };
    const updated = await client.unary(methods.Update, { info: { ...b, labels: { z: "2" } }, updateMask });
    assert.deepEqual(updated.info.labels, { z: "2" });
    assert.deepEqual(await client.unary(methods.Usage, { key: "A" }), { size: 2 ** 40 + 1, inodes: 3 });
    const listed = (await Array.fromAsync(client.stream(methods.List, {}))).flatMap((one) => one.info);
    assert.deepEqual(listed.map(({ name }) => name).sort(), ["A", "B", "v"]);
    await client.unary(methods.Remove, { key: "v" });
    await client.unary(methods.Cleanup, {});
  });

  test("lists 1,000 snapshots in messages of at most 100, and none as an empty stream", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods, snapshotter } = daemon;
    assert.deepEqual(await Array.fromAsync(client.stream(methods.List, {})), []);
    for (let at = 0; at < 1000; at++) await snapshotter.prepare(`key-${at}`, "", {});
    const sizes: number[] = [];
    for await (const { info } of client.stream(methods.List, {})) {
      sizes.push(info.length);
      assert.equal((await client.unary(methods.Stat, { key: "key-7" })).info.name, "key-7"); // while the stream is open
    }
    assert.deepEqual([Math.max(...sizes), sizes.reduce((a, b) => a + b)], [100, 1000]);
  });

  test("refuses an update without a snapshot, and a filter that can't be parsed", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods } = daemon;
    await assert.rejects(client.unary(methods.Update, {}), { code: "INVALID_ARGUMENT" });
    await assert.rejects(Array.fromAsync(client.stream(methods.List, { filters: ["broken"] })), {
      code: "INVALID_ARGUMENT",
    });
  });

  /** Each code of the closed list on the wire, as the table of the contract has it. */
  const WIRE: Readonly<Record<ErrorCode, number>> = {
    CANCELLED: 1,
    INVALID_ARGUMENT: 3,
    NOT_FOUND: 5,
    ALREADY_EXISTS: 6,
    PERMISSION_DENIED: 7,
    RESOURCE_EXHAUSTED: 8,
    FAILED_PRECONDITION: 9,
    ABORTED: 10,
    UNIMPLEMENTED: 12,
    INTERNAL: 13,
    UNAVAILABLE: 14,
    DATA_LOSS: 15,
    UNAUTHENTICATED: 16,
  };
  test("answers each error with its gRPC code, message and hint", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods, snapshotter } = daemon;
    for (const [code, number] of Object.entries(WIRE)) {
      snapshotter.failure = new ShaleError(code as ErrorCode, `Cannot do ${code}`, { hint: "Do this" });
      const error = await client.unary(methods.Stat, { key: "x" }).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      assert.ok(error instanceof ShaleError);
      const { cause } = error;
      assert.ok(cause instanceof Error && "code" in cause && "details" in cause);
      assert.deepEqual([cause.code, cause.details], [number, `Cannot do ${code} (Do this)`]);
    }
  });

  test("answers UNKNOWN for what is our own mistake, and logs its stack", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods, snapshotter } = daemon;
    snapshotter.failure = new TypeError("x is undefined");
    await assert.rejects(client.unary(methods.Usage, { key: "x" }), (error: Error) => {
      return (error.cause as { readonly code: number }).code === STATUS.UNKNOWN;
    });
    const line = daemon.log().find(({ level }) => level === "error");
    assert.match(String(line?.stack), /TypeError: x is undefined\n/);
  });

  test("statusOf() has codes for a full disk, and for a deadline that passed", () => {
    assert.equal(statusOf(Object.assign(new Error("x"), { code: "ENOSPC" })).code, STATUS.RESOURCE_EXHAUSTED);
    assert.equal(statusOf(Object.assign(new Error("x"), { code: "EXYZ" })).code, STATUS.UNKNOWN);
    const stopped = new ShaleError("CANCELLED", "x");
    assert.equal(statusOf(stopped).code, STATUS.CANCELLED);
    assert.equal(statusOf(stopped, { deadlinePassed: true }).code, STATUS.DEADLINE_EXCEEDED);
  });

  test("stops the work of a cancelled call, and leaves nothing of it", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods, snapshotter } = daemon;
    snapshotter.hold = new Promise(() => undefined);
    const stop = new AbortController();
    const call = client.unary(methods.Prepare, { key: "k" }, { signal: stop.signal });
    await Promise.race([snapshotter.held, call]); // a call that has not arrived would leave no line in the log
    stop.abort();
    await assert.rejects(call, { code: "CANCELLED" });
    assert.equal(await endOf(daemon, "k"), "CANCELLED");
    snapshotter.hold = undefined;
    await assert.rejects(client.unary(methods.Stat, { key: "k" }), { code: "NOT_FOUND" });
  });

  test("stops the work of a late call, and leaves nothing of it", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods, snapshotter } = daemon;
    snapshotter.hold = new Promise(() => undefined);
    // A client of ours cancels by its own clock: which of the two ends the call first is chance. This one only waits.
    const request = methods.Prepare.encodeRequest({ key: "k" });
    assert.equal(
      await callOverHttp2(daemon.config.address, methods.Prepare.path, request, "50m"),
      STATUS.DEADLINE_EXCEEDED,
    );
    assert.equal(await endOf(daemon, "k"), "DEADLINE_EXCEEDED");
    await assert.rejects(client.unary(methods.Prepare, { key: "k" }, { timeoutMs: 50 }), { code: "UNAVAILABLE" });
    snapshotter.hold = undefined;
    await assert.rejects(client.unary(methods.Stat, { key: "k" }), { code: "NOT_FOUND" });
  });

  test("refuses a request of more than 16 MiB", async () => {
    await using daemon = await startTestDaemon();
    const { client, snapshots: methods } = daemon;
    const labels = { x: "y".repeat(17 * 1024 * 1024) };
    await assert.rejects(client.unary(methods.Prepare, { key: "k", labels }), { code: "RESOURCE_EXHAUSTED" });
  });

  test("logs key, image and layer of a call", async () => {
    await using daemon = await startTestDaemon();
    await daemon.client.unary(daemon.snapshots.Prepare, { key: "ns/1/extract", labels: CRI_LABELS });
    const { key, image, layer, code, level } = daemon.log().find(({ message }) => message === "Prepare")!;
    assert.deepEqual(
      { key, image, layer, code, level },
      {
        ...{ key: "ns/1/extract", image: "docker.io/library/busybox:1", layer: "sha256:bb" },
        ...{ code: "OK", level: "debug" },
      },
    );
  });
});

describe("the health service", () => {
  test("answers for the whole and for each service, and tells watchers of the end", async () => {
    const daemon = await startTestDaemon();
    await using _ = daemon;
    const { client, health } = daemon;
    for (const service of ["", "containerd.services.snapshots.v1.Snapshots"]) {
      assert.equal((await client.unary(health.Check, { service })).status, SERVING_STATUS.serving);
    }
    await assert.rejects(client.unary(health.Check, { service: "x" }), { code: "NOT_FOUND" });
    const seen: number[] = [];
    for await (const { status } of client.stream(health.Watch, { service: "" })) {
      seen.push(status);
      if (seen.length === 1) void daemon.daemon.close();
    }
    assert.deepEqual(seen, [SERVING_STATUS.serving, SERVING_STATUS.notServing]);
  });
});

describe("Daemon", () => {
  test("makes its socket 0600, replaces a leftover, and removes it at the end", async () => {
    const daemon = await startTestDaemon();
    {
      await using _ = daemon;
      assert.equal(statSync(daemon.config.address).mode & 0o777, 0o600);
      assert.ok(statSync(daemon.config.address).isSocket());
    }
    assert.equal(existsSync(daemon.config.address), false);
    assert.equal(daemon.snapshotter.closed, true);
  });

  const TAKEN: readonly {
    readonly name: string;
    readonly take: (path: string) => (() => void) | undefined;
    readonly says: RegExp;
  }[] = [
    {
      name: "that a process answers on",
      take(path) {
        const server = createServer().listen(path);
        return () => server.close();
      },
      says: /shale\.sock: another process serves it/,
    },
    {
      name: "that is a file",
      take: (path) => void writeFileSync(path, "precious"),
      says: /a file has that name/,
    },
    { name: "that is a directory", take: (path) => void mkdirSync(path), says: /a directory has that name/ },
  ];
  for (const { name, take, says } of TAKEN) {
    test(`refuses an address ${name}, and closes what it had opened`, async () => {
      const directory = mkdtempSync(join(tmpdir(), "shale-daemon-"));
      const address = join(directory, "shale.sock");
      const release = take(address);
      await assert.rejects(startTestDaemon({ address }), (error: Error) => says.test(error.message));
      release?.();
      rmSync(directory, { recursive: true });
    });
  }

  test("takes over the socket of a process that was killed", async () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-daemon-"));
    const address = join(directory, "shale.sock");
    const { spawnSync } = await import("node:child_process");
    const script = `require("net").createServer().listen(${JSON.stringify(address)}, () => process.kill(process.pid, "SIGKILL"))`;
    spawnSync(process.execPath, ["-e", script]);
    assert.ok(statSync(address).isSocket());
    {
      await using daemon = await startTestDaemon({ address });
      assert.equal((await daemon.client.unary(daemon.health.Check, {})).status, SERVING_STATUS.serving);
    }
    rmSync(directory, { recursive: true });
  });

  test("lets calls under way end before it stops", async () => {
    const daemon = await startTestDaemon();
    await using _ = daemon;
    const { client, snapshots: methods, snapshotter } = daemon;
    const { promise, resolve } = Promise.withResolvers<void>();
    snapshotter.hold = promise;
    const call = client.unary(methods.Prepare, { key: "k" });
    await Promise.race([snapshotter.held, call]);
    const closed = daemon.daemon.close();
    assert.equal(existsSync(daemon.config.address), false);
    resolve();
    assert.equal((await call).mounts.length, 1);
    await closed;
  });

  test("says to systemd when it serves and when it stops, and pings the watchdog", async () => {
    const said: string[] = [];
    const manager = { present: true, watchdogMs: 5, notify: (...lines: string[]) => void said.push(...lines) };
    {
      await using _ = await startTestDaemon({}, manager);
      while (!said.includes("WATCHDOG=1")) await new Promise((done) => setTimeout(done, 5));
    }
    assert.equal(said[0], "READY=1");
    assert.ok(said.includes("STOPPING=1"));
    assert.ok(said.lastIndexOf("WATCHDOG=1") > 0);
  });
});

test("a service manager that does not answer is a warning", async () => {
  const notify = () => {
    throw Object.assign(new Error("sendto ECONNREFUSED"), { code: "ECONNREFUSED" });
  };
  await using daemon = await startTestDaemon({}, { present: true, watchdogMs: 5, notify });
  const warned = (what: string) =>
    daemon.log().some(({ message }) => message === `Cannot tell the service manager ${what}: sendto ECONNREFUSED`);
  while (!warned("READY=1") || !warned("WATCHDOG=1")) await new Promise((done) => setTimeout(done, 5));
  assert.equal((await daemon.client.unary(daemon.health.Check, {})).status, SERVING_STATUS.serving);
});

describe("metrics and probes", () => {
  const get = (place: string | { readonly host: string; readonly port: number }, path: string, method = "GET") =>
    new Promise<{ readonly status: number; readonly text: string; readonly type: string }>((resolve, reject) => {
      const where = typeof place === "string" ? { socketPath: place } : place;
      request({ ...where, path, method }, (response) => {
        let text = "";
        response.on("data", (chunk: Buffer) => {
          text += chunk.toString();
        });
        response.on("end", () =>
          resolve({ status: response.statusCode!, text, type: String(response.headers["content-type"]) }),
        );
      })
        .on("error", reject)
        .end();
    });

  test("counts calls by method and code, snapshots by kind, and the process, in Prometheus's format", async () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-daemon-"));
    const address = join(directory, "metrics.sock");
    {
      await using daemon = await startTestDaemon({ metrics: { address } });
      assert.equal(statSync(address).mode & 0o777, 0o600);
      const { client, snapshots: methods } = daemon;
      await client.unary(methods.Prepare, { key: "a" });
      await client.unary(methods.Prepare, { key: "a" }).catch(() => undefined);
      await client.unary(methods.Commit, { key: "a", name: "A" });
      const { status, text, type } = await get(address, "/metrics");
      assert.deepEqual([status, type], [200, "text/plain; version=0.0.4; charset=utf-8"]);
      const metrics = parseMetrics(text);
      const value = (name: string, labels: Readonly<Record<string, string>> = {}) => metrics.find(name, labels);
      assert.equal(value("shale_rpc_total", { method: "Prepare", code: "OK" }), 1);
      assert.equal(value("shale_rpc_total", { method: "Prepare", code: "ALREADY_EXISTS" }), 1);
      assert.equal(value("shale_rpc_duration_seconds_count", { method: "Prepare" }), 2);
      assert.equal(value("shale_rpc_duration_seconds_bucket", { method: "Prepare", le: "+Inf" }), 2);
      assert.equal(value("shale_snapshots", { kind: "committed" }), 1);
      assert.equal(value("shale_snapshots", { kind: "active" }), 0);
      assert.equal(value("shale_info", { version: "1.2.3" }), 1);
      assert.equal(value("shale_store_layers"), 0);
      assert.ok(value("process_resident_memory_bytes")! > 1e6);
      assert.ok(value("shale_disk_bytes")! > 0);
    }
    assert.equal(existsSync(address), false);
    rmSync(directory, { recursive: true });
  });

  test("answers /healthz and /readyz on TCP, and nothing else", async () => {
    const daemon = await startTestDaemon({ metrics: { address: "127.0.0.1:0" } });
    await using _ = daemon;
    const [host, port] = daemon.daemon.probes!.address.split(":");
    const place = { host: host!, port: Number(port) };
    assert.deepEqual((await get(place, "/healthz")).status, 200);
    assert.deepEqual((await get(place, "/readyz")).status, 200);
    assert.deepEqual((await get(place, "/")).status, 404);
    assert.deepEqual((await get(place, "/metrics", "POST")).status, 405);
  });

  test("refuses an address that is in use", async () => {
    await using first = await startTestDaemon({ metrics: { address: "127.0.0.1:0" } });
    const address = first.daemon.probes!.address;
    await assert.rejects(startTestDaemon({ metrics: { address } }, NO_MANAGER), { code: "FAILED_PRECONDITION" });
    assert.equal(defaultConfig().metrics.address, "");
  });
});
