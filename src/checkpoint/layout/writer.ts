/** Writes a planned archive: the second pass, which moves the data. */
import { setImmediate } from "node:timers/promises";
import { displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";
import {
  DATA_FROM,
  encodeIndex,
  MEMBER,
  type Section,
  SectionDigester,
  type SectionDigests,
} from "../archive/index.ts";
import { eachEntry, type SourceContent, type SourceEntry } from "../sources/entry.ts";
import type { ArchiveOutput } from "./output.ts";
import {
  type Alignment,
  documentHeader,
  encodeHeader,
  encodeMemberHeader,
  headerOf,
  isMeasured,
  type MeasuredMember,
  type PlannedMember,
  plannedSize,
} from "./plan.ts";

export interface WriterOptions {
  readonly alignment: Alignment;
  /**
   * Whether all data is to be digested. Otherwise it is where it passes through this process anyway: `inKernel` says that
   * it does not.
   */
  readonly digestData: boolean;
  readonly inKernel: boolean;
  readonly signal?: AbortSignal;
}

export interface IndexFacts {
  readonly writer: string;
  readonly opaque: readonly string[];
}

export interface SectionSize {
  readonly section: Section;
  /** Of its contents, without the outer headers. */
  readonly size: number;
  /** Members; of a nested tar, entries. */
  readonly files: number;
}

export interface WrittenArchive {
  /** Of the tar, before any compression. */
  readonly size: number;
  readonly sections: readonly SectionSize[];
  readonly digests: readonly SectionDigests[];
}

/** Writes the members, the index and the end of the archive. ABORTED when a source is not what was planned any more. */
export async function writeArchive(
  members: readonly PlannedMember[],
  index: IndexFacts,
  output: ArchiveOutput,
  options: WriterOptions,
): Promise<WrittenArchive> {
  const { alignment, signal } = options;
  const digester = new SectionDigester();
  const writer = new Writer(output, digester, options);
  const planned = plannedSize(members, alignment);
  const sizes = new Map<string, { section: Section; size: number; files: number }>();
  for (const member of members) {
    signal?.throwIfAborted();
    const { section } = member;
    const header = headerOf(member);
    await writer.header(section, (offset) => encodeMemberHeader(member, offset, alignment));
    if (isMeasured(member)) await writeNested(writer, member, alignment, signal);
    else if (member.entry.content !== undefined) await writer.content(section, header, member.entry.content);
    const key = `${section.kind}/${section.name}`;
    const sum = sizes.get(key) ?? { section, size: 0, files: 0 };
    sizes.set(key, sum);
    sum.size += header.size;
    sum.files += isMeasured(member) ? member.files : 1;
  }
  const padding = tarPadding(output.position);
  if (output.position + padding.length !== planned) throw notAsPlanned("the archive", planned, output.position);
  const digests = digester.finish();
  const { writer: name, opaque } = index;
  const document = encodeIndex({ writer: name, size: planned, digests, opaque });
  const header = documentHeader(MEMBER.index, document.length);
  const end = [padding, encodeHeader(header, planned, alignment), document, tarPadding(document.length), TAR_END];
  for (const bytes of end) await output.write(bytes);
  await output.finish();
  return { size: output.position, sections: [...sizes.values()], digests };
}

/** Entries, at some 30 us each. */
const BETWEEN_TURNS = 256;

async function writeNested(
  writer: Writer,
  { section, header: outer, source }: MeasuredMember,
  alignment: Alignment,
  signal: AbortSignal | undefined,
): Promise<void> {
  const start = writer.position;
  let count = 0;
  const write = ({ header, content }: SourceEntry): void | Promise<void> => {
    signal?.throwIfAborted();
    const wait = writer.header(section, (offset) => encodeHeader(header, offset - start, alignment));
    return wait === undefined ? fill(header, content) : wait.then(() => fill(header, content));
  };
  const fill = (header: TarHeader, content: SourceContent | undefined): void | Promise<void> => {
    // Nothing may be written beyond what the outer header promised.
    if (writer.position - start + header.size > outer.size) {
      throw notAsPlanned(displayBytes(outer.path), outer.size, writer.position - start + header.size);
    }
    return content && writer.content(section, header, content);
  };
  await eachEntry(source.entries(), (entry) => {
    // Else nothing comes through for as long as it takes: no Ctrl-C, and not the end of what runs beside.
    return ++count % BETWEEN_TURNS === 0 ? setImmediate().then(() => write(entry)) : write(entry);
  });
  await writer.header(section, () => TAR_END);
  if (writer.position - start !== outer.size) {
    throw notAsPlanned(displayBytes(outer.path), outer.size, writer.position - start);
  }
}

/** Keeps output and digests in step: what a reader will count as header is counted as header here. */
class Writer {
  readonly #output: ArchiveOutput;
  readonly #digester: SectionDigester;
  readonly #options: WriterOptions;

  constructor(output: ArchiveOutput, digester: SectionDigester, options: WriterOptions) {
    this.#output = output;
    this.#digester = digester;
    this.#options = options;
  }

  get position(): number {
    return this.#output.position;
  }

  /** The padding of what is before, then the header for where it comes to be. */
  header(section: Section, encode: (offset: number) => Uint8Array): void | Promise<void> {
    const padding = tarPadding(this.#output.position);
    const header = encode(this.#output.position + padding.length);
    const bytes = padding.length === 0 ? header : Buffer.concat([padding, header]);
    this.#digester.header(section, bytes);
    return this.#output.write(bytes);
  }

  content(section: Section, header: TarHeader, content: SourceContent): void | Promise<void> {
    if (content instanceof Uint8Array) {
      this.#digester.content(section, header, content);
      return this.#output.write(content);
    }
    const isData = header.size >= DATA_FROM;
    const { digestData, inKernel } = this.#options;
    const see = !isData || digestData || !inKernel;
    const open = content.open();
    const done = (): void => {
      open.verify();
      if (!see) this.#digester.skipped(section);
    };
    /** A file that became shorter fails in its own way; that it was changed is the reason. */
    const failed = (error: unknown): never => {
      open.verify();
      throw error;
    };
    let moving: void | Promise<void>;
    try {
      const seen = see ? (bytes: Uint8Array) => this.#digester.content(section, header, bytes) : undefined;
      moving = this.#output.add(open, header.size, seen);
      if (moving === undefined) done();
    } catch (error) {
      using _ = open;
      return failed(error);
    }
    if (moving !== undefined) return moving.then(done, failed).finally(() => open[Symbol.dispose]());
    open[Symbol.dispose]();
    return undefined;
  }
}

function notAsPlanned(what: string, planned: number, found: number): ShaleError {
  return new ShaleError(
    "ABORTED",
    `Cannot write the checkpoint: ${what} was planned with ${planned} bytes, now it has ${found}`,
    { hint: "See that the container is stopped or paused while its checkpoint is written" },
  );
}
