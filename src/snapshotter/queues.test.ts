import assert from "node:assert/strict";
import { test } from "node:test";
import { join } from "node:path";
import { Store } from "../store/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { Converter } from "./converter.ts";
import { Syncer } from "./syncer.ts";

// What is asked for here comes after the loop's last look at its queue, and before its end is noticed.

test("Converter: what is added just as the last of the queue ends is done as well", (t) =>
  withTemporaryDirectory(async (scratch) => {
    await using store = Store.open(join(scratch, "store"), { create: true });
    const register = store.openSnapshots();
    const converter = new Converter(store, register, (event) => assert.fail(JSON.stringify(event)));
    const asked: number[] = [];
    t.mock.method(register, "findById", (id: number) => {
      asked.push(id);
      if (id < 3) queueMicrotask(() => converter.add(id + 1));
      return undefined; // removed meanwhile
    });
    converter.add(1);
    await converter.settled();
    await converter.close();
    assert.deepEqual(asked, [1, 2, 3]);
  }));

test("Syncer: what is requested just as a round ends gets another one", (t) =>
  withTemporaryDirectory(async (scratch) => {
    await using store = Store.open(join(scratch, "store"), { create: true });
    const register = store.openSnapshots();
    const syncer = new Syncer(store.root, register, (event) => assert.fail(JSON.stringify(event)));
    let rounds = 0;
    t.mock.method(register, "unsynced", () => {
      if (++rounds < 3) queueMicrotask(() => syncer.request());
      return [];
    });
    syncer.request();
    await syncer.settled();
    assert.equal(rounds, 3);
  }));
