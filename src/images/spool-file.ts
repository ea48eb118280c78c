/** Bytes that are written now and read back later in the same operation, in a file without a name in the temporary directory. */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ShaleError } from "../errors/index.ts";
import { closeFile, createFile, readAt, unlink, writeAt } from "../sys/index.ts";
import { explainWriteError } from "./write-error.ts";

const PIECE = 1024 * 1024;
/** Small writes are gathered: a system call for each would cost more than the bytes. */
const BUFFER = 256 * 1024;

/** Not durable; gone when it is disposed of or the process ends. */
export class SpoolFile implements Disposable {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafeSlow(BUFFER);
  #fill = 0;
  #flushed = 0;
  #closed = false;

  /** In `directory`, else in /var/tmp unless TMPDIR says otherwise: /tmp is often in memory. */
  constructor(directory = tmpdir() === "/tmp" ? "/var/tmp" : tmpdir()) {
    const path = join(directory, `shale-${crypto.randomUUID()}`);
    try {
      this.#fd = createFile(path);
      unlink(path);
    } catch (error) {
      throw explainWriteError(error, `Cannot make a temporary file in ${directory}`, "Set TMPDIR to another directory");
    }
  }

  get size(): number {
    return this.#flushed + this.#fill;
  }

  /** The bytes are not kept after the call. RESOURCE_EXHAUSTED when the disk is full. */
  append(bytes: Uint8Array): void {
    if (bytes.length > BUFFER - this.#fill) this.#flush();
    if (bytes.length > BUFFER) this.#write(bytes);
    else {
      this.#buffer.set(bytes, this.#fill);
      this.#fill += bytes.length;
    }
  }

  /** All of it, in order. A piece is valid until the next. */
  *read(): Generator<Uint8Array, void, undefined> {
    this.#flush();
    const buffer = Buffer.allocUnsafeSlow(Math.min(PIECE, Math.max(1, this.#flushed)));
    for (let at = 0; at < this.#flushed; ) {
      const count = readAt(this.#fd, buffer.subarray(0, Math.min(PIECE, this.#flushed - at)), at);
      if (count === 0) throw new ShaleError("DATA_LOSS", "Cannot read a temporary file: it became shorter");
      yield buffer.subarray(0, count);
      at += count;
    }
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    closeFile(this.#fd);
  }

  #flush(): void {
    const fill = this.#fill;
    this.#fill = 0;
    if (fill > 0) this.#write(this.#buffer.subarray(0, fill));
  }

  #write(bytes: Uint8Array): void {
    try {
      writeAt(this.#fd, bytes, this.#flushed);
    } catch (error) {
      throw explainWriteError(error, "Cannot write a temporary file", "Set TMPDIR to a directory with more room");
    }
    this.#flushed += bytes.length;
  }
}
