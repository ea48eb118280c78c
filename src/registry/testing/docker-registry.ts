/** Debian's docker-registry as a child of the test: a real registry to pull from and push to. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { parseReference } from "../../oci/index.ts";
import { testClient } from "./fixtures.ts";

export interface DockerRegistry extends AsyncDisposable {
  /** "127.0.0.1:PORT". */
  readonly host: string;
  /** Ends the process; `start` begins it again with what it has stored, at the same port. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

/** `directory` gets its files; `more` is added to its configuration. It listens when this resolves. */
export async function startDockerRegistry(directory: string, more = ""): Promise<DockerRegistry> {
  mkdirSync(directory, { recursive: true });
  const host = `127.0.0.1:${await freePort()}`;
  const file = join(directory, "config.yml");
  const storage = `{filesystem: {rootdirectory: ${join(directory, "data")}}, delete: {enabled: true}}`;
  writeFileSync(
    file,
    `version: 0.1\nlog: {level: error}\nstorage: ${storage}\nhttp: {addr: "${host}", secret: x}\n${more}`,
  );
  let end = async () => {};
  const start = async () => {
    const child = spawn("docker-registry", ["serve", file], { stdio: "ignore" });
    const exited = once(child, "exit");
    end = async () => {
      child.kill("SIGKILL");
      await exited;
    };
    await using one = testClient({ retry: { attempts: 200, baseMs: 20, maxMs: 20 } });
    const ready = one.client.resolve(parseReference(`${host}/nothing:here`));
    await assert.rejects(
      ready,
      (error) => ShaleError.is(error, "NOT_FOUND") || ShaleError.is(error, "UNAUTHENTICATED"),
    );
  };
  await start();
  return { host, start, stop: () => end(), [Symbol.asyncDispose]: () => end() };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  assert.ok(typeof address === "object" && address !== null);
  return address.port;
}
