import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { removalSteps, removeTree } from "./remove-tree.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

test("removeTree() removes files and directories, not what symlinks lead to, and is false for nothing", () =>
  withTemporaryDirectory((directory) => {
    const tree = join(directory, "tree");
    mkdirSync(join(tree, "a/b/c"), { recursive: true });
    mkdirSync(join(directory, "outside"));
    writeFileSync(join(directory, "outside/kept"), "");
    symlinkSync(join(directory, "outside"), join(tree, "a/link"));
    writeFileSync(join(tree, "a/b/file"), "");
    assert.equal(removeTree(tree), true);
    assert.equal(removeTree(tree), false);
    assert.deepEqual(readdirSync(directory), ["outside"]);
    assert.equal(readdirSync(join(directory, "outside")).length, 1);
  }));

test("removeTree() removes names that are not UTF-8", () =>
  withTemporaryDirectory((directory) => {
    const tree = join(directory, "tree");
    mkdirSync(tree);
    const name = Buffer.concat([Buffer.from(`${tree}/`), Buffer.of(0xff, 0xfe, 0x2e, 0x80)]);
    mkdirSync(name);
    writeFileSync(Buffer.concat([name, Buffer.from("/x"), Buffer.of(0xc3)]), "");
    assert.equal(removeTree(tree), true);
    assert.equal(existsSync(tree), false);
  }));

test("removeTree() removes a tree that is deeper than a path can be long", () =>
  withTemporaryDirectory((directory) => {
    const tree = join(directory, "tree");
    mkdirSync(tree);
    const name = "d".repeat(200);
    // A path may have 4096 bytes: this goes down step by step.
    const script = `cd "$1"; i=0; while [ $i -lt 60 ]; do mkdir ${name} x; echo > f; cd ${name}; i=$((i+1)); done`;
    assert.equal(spawnSync("sh", ["-c", script, "sh", tree]).status, 0);
    assert.equal(removeTree(tree), true);
    assert.equal(existsSync(tree), false);
  }));

test("removalSteps() can be stopped and begun again", () =>
  withTemporaryDirectory((directory) => {
    const tree = join(directory, "tree");
    mkdirSync(join(tree, "a"), { recursive: true });
    for (let at = 0; at < 10; at++) writeFileSync(join(tree, "a", String(at)), "");
    const steps = removalSteps(tree);
    for (let at = 0; at < 4; at++) steps.next();
    assert.equal(readdirSync(join(tree, "a")).length, 6);
    assert.equal(removeTree(tree), true);
  }));
