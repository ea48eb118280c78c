import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { monotonicMicroseconds, serviceManager } from "./service-manager.ts";

/** Binds the name in argv as systemd would, and prints each datagram as a JSON string. Node has no such sockets. */
const LISTENER = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = sys.argv[1]
s.bind("\\0" + name[1:] if name.startswith("@") else name)
print(json.dumps("bound"), flush=True)
while True: print(json.dumps(s.recv(65536).decode()), flush=True)
`;

async function listen(name: string) {
  const child: ChildProcess = spawn("python3", ["-c", LISTENER, name], { stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface(child.stdout!)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => JSON.parse((await lines.next()).value as string) as string;
  assert.equal(await next(), "bound");
  return { next, [Symbol.dispose]: () => void child.kill("SIGKILL") };
}

describe("serviceManager()", () => {
  let directory: string;
  before(() => {
    directory = mkdtempSync(join(tmpdir(), "shale-notify-"));
  });
  after(() => rmSync(directory, { recursive: true }));

  for (const kind of ["path", "abstract"] as const) {
    test(`speaks to a socket with a name of kind ${kind}`, async () => {
      const name = kind === "path" ? join(directory, "notify") : `@shale-test-${process.pid}`;
      using listener = await listen(name);
      const manager = serviceManager({ NOTIFY_SOCKET: name });
      assert.equal(manager.present, true);
      manager.notify("READY=1", "STATUS=serving");
      assert.equal(await listener.next(), "READY=1\nSTATUS=serving");
      manager.notify("STOPPING=1");
      assert.equal(await listener.next(), "STOPPING=1");
    });
  }

  test("does nothing without systemd, and takes its variables out of the environment", () => {
    const env = { NOTIFY_SOCKET: "", WATCHDOG_USEC: "2000000", WATCHDOG_PID: "1", PATH: "/bin" };
    const manager = serviceManager(env, 1);
    assert.deepEqual(env, { PATH: "/bin" });
    assert.deepEqual([manager.present, manager.watchdogMs], [false, undefined]);
    manager.notify("READY=1");
    assert.equal(serviceManager({ NOTIFY_SOCKET: "relative" }).present, false);
  });

  test("is watched only where the variables are about this process", () => {
    const env = (pid?: string) => ({
      NOTIFY_SOCKET: "@x",
      WATCHDOG_USEC: "3000000",
      ...(pid ? { WATCHDOG_PID: pid } : {}),
    });
    assert.equal(serviceManager(env("7"), 7).watchdogMs, 1500);
    assert.equal(serviceManager(env(), 7).watchdogMs, 1500);
    assert.equal(serviceManager(env("8"), 7).watchdogMs, undefined);
    assert.equal(serviceManager({ NOTIFY_SOCKET: "@x", WATCHDOG_USEC: "soon" }).watchdogMs, undefined);
  });

  test("says that nobody reads, and that a name is too long", () => {
    const absent = join(directory, "absent");
    assert.throws(() => serviceManager({ NOTIFY_SOCKET: absent }).notify("READY=1"), { code: "ENOENT" });
    assert.throws(() => serviceManager({ NOTIFY_SOCKET: `/${"x".repeat(200)}` }).notify("READY=1"), {
      code: "ENAMETOOLONG",
    });
  });
});

test("monotonicMicroseconds() never goes back", () => {
  const first = monotonicMicroseconds();
  assert.ok(monotonicMicroseconds() >= first);
});
