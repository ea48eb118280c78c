/**
 * Verifying checkpoint archives: everything is read once.
 *
 * - Against the digests that shale wrote (shale.json): each section's structure, and its data where that was digested.
 * - Whether it is whole, for archives of every engine: tars end where they should, also those inside and compressed ones;
 *   metadata and CRIU's images decode; each process has as much memory as its pagemap says.
 *
 * A truncated or malformed archive is a FormatError, since nothing behind that place can be known; all else is in the result.
 * Memory is bounded by the limits of the formats.
 */
import { displayBytes } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { decodeSingle, ProcessTreeReader, STATS } from "../../formats/criu/index.ts";
import {
  type ArchiveIndex,
  type ArchiveMember,
  type CheckpointArchive,
  compareDigests,
  type Content,
  decodeIndex,
  INDEX_SIZE_MAX,
  isNested,
  SectionDigester,
  type SectionKind,
} from "../archive/index.ts";
import { decodeContainer, decodeDeleted, decodeNetworks, decodeSpec, MAX_METADATA } from "../show/index.ts";

export interface VerifiedSection {
  readonly kind: SectionKind;
  readonly name: string;
  /**
   * "verified": all of it has its digest. "structure": names, metadata and small files have; of the data there is no digest
   * (shale moved it unseen). "unknown": there are no digests.
   */
  readonly state: "verified" | "structure" | "unknown" | "damaged";
  readonly problem: string | undefined;
}

export interface Verification {
  /** Who wrote the digests; undefined when there are none. */
  readonly writer: string | undefined;
  readonly sections: readonly VerifiedSection[];
  /** What is wrong beyond digests, as sentences. */
  readonly problems: readonly string[];
  /** Nothing is wrong, as far as can be told. */
  readonly sound: boolean;
}

export interface VerifyOptions {
  /** Told of bytes of content. */
  readonly onBytes?: (count: number) => void;
}

export async function verifyArchive(archive: CheckpointArchive, options: VerifyOptions = {}): Promise<Verification> {
  const digester = new SectionDigester({ data: true });
  const check = new Check(options);
  for await (const member of archive.members({ observer: digester })) await check.add(member);
  const found = digester.finish();
  const { index, problems } = check.finish();
  const written = index?.digests ?? [];
  const digested = new Map(written.map(({ section, data }) => [`${section.kind}/${section.name}`, data]));
  const sections =
    index === undefined
      ? found.map(({ section }) => verified(section, "unknown", undefined))
      : compareDigests(written, found).map(({ section, problem, data }) => {
          if (problem !== undefined) return verified(section, "damaged", problem);
          const all = data || digested.get(`${section.kind}/${section.name}`) === NO_DATA;
          return verified(section, all ? "verified" : "structure", undefined);
        });
  const sound = problems.length === 0 && sections.every(({ state }) => state !== "damaged");
  return { writer: index?.writer, sections, problems, sound };
}

/** sha256 of nothing: a section without large files. */
const NO_DATA = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

function verified(
  { kind, name }: { readonly kind: SectionKind; readonly name: string },
  state: VerifiedSection["state"],
  problem: string | undefined,
): VerifiedSection {
  return { kind, name: displayBytes(name), state, problem };
}

class Check {
  readonly #options: VerifyOptions;
  readonly #processes = new ProcessTreeReader();
  readonly #pages = new Map<number, number>();
  readonly #problems: string[] = [];
  #index: ArchiveIndex | undefined;

  constructor(options: VerifyOptions) {
    this.#options = options;
  }

  async add(member: ArchiveMember): Promise<void> {
    const { path, section, entry, content } = member;
    if (this.#index !== undefined) this.#problems.push(`${displayBytes(path)} stands behind shale.json`);
    if (entry.type !== "file") return;
    switch (section.kind) {
      case "index":
        this.#index = decodeIndex(await content.bytes(INDEX_SIZE_MAX));
        if (this.#index.size !== entry.headerOffset) {
          this.#problems.push(`shale.json begins at byte ${entry.headerOffset} in place of ${this.#index.size}`);
        }
        return;
      case "config":
        return await this.#decode(member, decodeContainer);
      case "spec":
        return await this.#decode(member, decodeSpec);
      case "network":
        return await this.#decode(member, decodeNetworks);
      case "deleted":
        return await this.#decode(member, decodeDeleted);
      case "stats":
        return await this.#decode(member, (bytes) => decodeSingle(bytes, "stats", STATS, path));
      case "images":
      case "pre-images":
        return await this.#image(member);
      default:
        if (!isNested(section.kind)) return await this.#readAll(content);
        for await (const inner of (await member.open()).entries()) await this.#readAll(inner.content);
    }
  }

  finish(): { readonly index: ArchiveIndex | undefined; readonly problems: readonly string[] } {
    for (const { pid, pagemap } of this.#processes.finish().processes) {
      if (pagemap === undefined) continue;
      const name = `pages-${pagemap.pagesId}.img`;
      const size = this.#pages.get(pagemap.pagesId);
      if (size === undefined && pagemap.size > 0) {
        this.#problems.push(`${name}, the memory of process ${pid}, is missing`);
      } else if (size !== undefined && size !== pagemap.size) {
        this.#problems.push(`${name} has ${size} bytes; process ${pid} has ${pagemap.size}`);
      }
    }
    return { index: this.#index, problems: this.#problems };
  }

  async #decode(member: ArchiveMember, decode: (bytes: Uint8Array) => unknown): Promise<void> {
    const bytes = await member.content.bytes(MAX_METADATA);
    this.#options.onBytes?.(bytes.length);
    this.#guard(() => decode(bytes));
  }

  async #image({ path, content }: ArchiveMember): Promise<void> {
    const name = path.slice(path.indexOf("/") + 1);
    const pages = /^pages-(\d{1,10})\.img$/.exec(name);
    if (pages !== null) this.#pages.set(Number(pages[1]), content.remaining);
    if (!ProcessTreeReader.wants(name, content.remaining)) return await this.#readAll(content);
    const bytes = await content.bytes(content.remaining);
    this.#options.onBytes?.(bytes.length);
    this.#guard(() => this.#processes.add(name, bytes));
  }

  /** What one member has wrong does not keep the others from being looked at. */
  #guard(decode: () => unknown): void {
    try {
      decode();
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      this.#problems.push(error.message);
    }
  }

  async #readAll(content: Content): Promise<void> {
    for (let piece = await content.read(); piece !== undefined; piece = await content.read()) {
      this.#options.onBytes?.(piece.length);
    }
  }
}
