/**
 * A container that reads and writes without a pause while things go wrong around it. It notes every failure, and every file
 * that does not read as it did the first time.
 */
import assert from "node:assert/strict";
import type { Machine } from "./machine.ts";
import { until } from "./processes.ts";

/** Its notes are in memory: on a full disk they would be lost, and its own file could not be written to. */
const SCRIPT = `
cd /dev/shm
busybox find /kinds/large /kinds/small /kinds/sparse -type f | busybox sort >files
busybox xargs md5sum <files >first
i=0
while :; do
  busybox xargs md5sum <files >now 2>>errors || echo "reading failed in round $i" >>errors
  busybox cmp -s first now || echo "other content in round $i" >>errors
  { echo "more $i" >>/kinds/small/1.copy; } 2>said || busybox grep -q "No space left" said ||
    { echo "writing failed in round $i:"; busybox cat said; } >>errors
  i=$((i+1)); echo $i >rounds
done`;

export class Witness {
  readonly #machine: Machine;
  readonly #id: string;
  #asked = 0;

  private constructor(machine: Machine, id: string) {
    this.#machine = machine;
    this.#id = id;
  }

  /** In a container of `image`, which must have the hundred files of each kind. */
  static async start(machine: Machine, image: string, id = "witness"): Promise<Witness> {
    const log = ["--log-uri", `file://${machine.directory}/${id}.log`];
    await machine.mustCtr(
      "run",
      "-d",
      "--snapshotter",
      "shale",
      ...log,
      machine.reference(image),
      id,
      "sh",
      "-c",
      SCRIPT,
    );
    const witness = new Witness(machine, id);
    await until(async () => (await witness.#rounds()) > 0);
    return witness;
  }

  /** It still works, has worked since the last look, and nothing went wrong. */
  async assertWell(): Promise<void> {
    const before = await this.#rounds();
    await until(async () => (await this.#rounds()) > before);
    const { stdout } = await this.#exec("cat", "/dev/shm/errors");
    assert.equal(stdout, "", "the container saw errors");
  }

  async end(): Promise<void> {
    await this.#machine.mustCtr("tasks", "rm", "-f", this.#id);
    await this.#machine.mustCtr("containers", "rm", this.#id);
  }

  async #rounds(): Promise<number> {
    const { stdout } = await this.#exec("cat", "/dev/shm/rounds");
    return Number(stdout || 0);
  }

  #exec(...command: string[]) {
    const words = ["tasks", "exec", "--fifo-dir", this.#machine.fifoDirectory, "--exec-id", `look-${this.#asked++}`];
    return this.#machine.ctr(...words, this.#id, ...command);
  }
}
