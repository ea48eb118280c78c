/** One pass over an archive for what it says of itself: see index.ts. */
import { decodeSingle, ProcessTreeReader, type ProcessTree, STATS } from "../../formats/criu/index.ts";
import {
  type ArchiveCompression,
  type ArchiveMember,
  type CheckpointArchive,
  type Dialect,
  DialectDetector,
  isNested,
  type SectionKind,
} from "../archive/index.ts";
import {
  type ContainerFacts,
  decodeContainer,
  decodeDeleted,
  decodeNetworks,
  decodeSpec,
  MAX_METADATA,
  type SpecFacts,
} from "./metadata.ts";

export interface SectionSize {
  readonly kind: SectionKind;
  /** Of a volume: its name. */
  readonly name: string;
  readonly members: number;
  /** Bytes of the members' content, as the archive has them (holes left out). */
  readonly size: number;
}

export interface CheckpointSurvey {
  readonly dialect: Dialect;
  readonly compression: ArchiveCompression;
  /** Of the file; undefined for a stream. */
  readonly fileSize: number | undefined;
  /**
   * False when the pass ended before the last member, because going on would have meant to read through all of the rest:
   * sections, processes and dialect are then those that were seen.
   */
  readonly complete: boolean;
  readonly container: ContainerFacts;
  readonly spec: SpecFacts;
  readonly networks: Readonly<Record<string, readonly string[]>>;
  /** Paths that the container removed; undefined where the archive has no list of them. */
  readonly deleted: number | undefined;
  /** In the order of the archive. */
  readonly sections: readonly SectionSize[];
  readonly tree: ProcessTree;
  /** CRIU's own account, times in microseconds. */
  readonly statistics:
    | {
        readonly frozenUs: number;
        readonly memdumpUs: number;
        readonly memwriteUs: number;
        readonly pagesWritten: number;
      }
    | undefined;
}

export interface SurveyOptions {
  /** Read to the end where passing over is not free. */
  readonly full?: boolean;
}

/** A member that is larger is not metadata: where passing over it is not free, the pass ends before it. */
const LARGE = 1024 * 1024;

/** See index.ts, `surveyArchive`. */
export async function surveyArchive(
  archive: CheckpointArchive,
  options: SurveyOptions = {},
): Promise<CheckpointSurvey> {
  const survey = new Survey();
  const mayStop = archive.access === "read" && options.full !== true;
  let complete = true;
  for await (const member of archive.members()) {
    if (mayStop && member.content.remaining > LARGE && survey.knowsContainer) {
      complete = false;
      break;
    }
    await survey.add(member);
  }
  return { compression: archive.compression, fileSize: archive.size, complete, ...survey.finish() };
}

class Survey {
  readonly #dialect = new DialectDetector();
  readonly #sections = new Map<string, { kind: SectionKind; name: string; members: number; size: number }>();
  readonly #processes = new ProcessTreeReader();
  #container: ContainerFacts | undefined;
  #spec: SpecFacts | undefined;
  #networks: Readonly<Record<string, readonly string[]>> = {};
  #deleted: number | undefined;
  #statistics: CheckpointSurvey["statistics"];

  get knowsContainer(): boolean {
    return this.#container !== undefined && this.#spec !== undefined;
  }

  async add(member: ArchiveMember): Promise<void> {
    const { path, section, content, entry } = member;
    this.#dialect.member(path, section);
    const key = section.kind === "volume" ? `volume ${section.name}` : section.kind;
    const found = this.#sections.get(key) ?? { kind: section.kind, name: section.name, members: 0, size: 0 };
    found.members++;
    found.size += content.remaining;
    this.#sections.set(key, found);
    if (entry.type !== "file") return;
    switch (section.kind) {
      case "config":
        this.#container = decodeContainer(await content.bytes(MAX_METADATA));
        break;
      case "spec":
        this.#spec = decodeSpec(await content.bytes(MAX_METADATA));
        break;
      case "network":
        this.#networks = decodeNetworks(await content.bytes(MAX_METADATA));
        break;
      case "deleted":
        this.#deleted = decodeDeleted(await content.bytes(MAX_METADATA)).length;
        break;
      case "stats":
        await this.#addStatistics(member);
        break;
      case "images":
      case "pre-images": // podman container checkpoint --pre-checkpoint: an archive of its own
        await this.#addImage(member);
        break;
      default:
        // containerd compresses it, which tells the dialect; its first bytes are enough
        if (section.kind === "rootfs" && isNested(section.kind))
          this.#dialect.rootfs((await member.open()).compression);
    }
  }

  async #addImage({ path, content }: ArchiveMember): Promise<void> {
    const name = path.slice(path.indexOf("/") + 1);
    if (ProcessTreeReader.wants(name, content.remaining)) {
      this.#processes.add(name, await content.bytes(content.remaining));
      return;
    }
    const pages = /^pages-(\d{1,10})\.img$/.exec(name);
    if (pages === null) return;
    let at = 0;
    for (const { pid, offset, length } of this.#processes.argumentsIn(Number(pages[1]))) {
      if (offset < at || offset + length > at + content.remaining) continue; // not what CRIU writes
      await content.skip(offset - at);
      const bytes = Buffer.alloc(length);
      for (let have = 0; have < length; ) {
        const piece = await content.read(length - have);
        if (piece === undefined) break;
        bytes.set(piece, have);
        have += piece.length;
      }
      at = offset + length;
      this.#processes.addArguments(pid, bytes);
    }
  }

  async #addStatistics({ path, content }: ArchiveMember): Promise<void> {
    const { dump } = decodeSingle(await content.bytes(MAX_METADATA), "stats", STATS, path);
    if (dump === undefined) return;
    const { frozen = 0, memdump = 0, memwrite = 0, pagesWritten = 0 } = dump;
    this.#statistics = { frozenUs: frozen, memdumpUs: memdump, memwriteUs: memwrite, pagesWritten };
  }

  finish(): Omit<CheckpointSurvey, "compression" | "fileSize" | "complete"> {
    return {
      dialect: this.#dialect.dialect,
      container: this.#container ?? {},
      spec: this.#spec ?? { mounts: [] },
      networks: this.#networks,
      deleted: this.#deleted,
      sections: [...this.#sections.values()],
      tree: this.#processes.finish(),
      statistics: this.#statistics,
    };
  }
}
