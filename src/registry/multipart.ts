/**
 * multipart/byteranges, RFC 9110 section 14.6: the answer to a request for several ranges. A part says by its
 * Content-Range which bytes it has; parts may come in any order, joined or cut, and with bytes that nobody asked for.
 */
import { Failure, printable } from "./failure.ts";
import { releaseChunk } from "./http.ts";

export interface RangePart {
  /** Half-open, within the blob. */
  readonly offset: number;
  readonly end: number;
}

/** A line of a part's head, or the rest before a boundary, is not longer. */
const LINE_LIMIT = 8192;
/** Lines of one part's head. */
const HEADER_LINES = 32;

/** The boundary of a Content-Type, or undefined for anything that is not multipart/byteranges. */
export function findBoundary(contentType: string | undefined): string | undefined {
  if (contentType === undefined || !/^multipart\/byteranges\s*;/i.test(contentType)) return undefined;
  // CloudFront writes boundaries with ":" and "/" without the quotes that RFC 2046 asks for
  const match = /;\s*boundary=(?:"([^"]{1,200})"|([^;\s]{1,200}))/i.exec(contentType);
  return match?.[1] ?? match?.[2];
}

/** "bytes 5-9/100", or undefined where it can't be meant for a blob of `size` bytes. */
export function parseContentRange(text: string | undefined, size: number): RangePart | undefined {
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/i.exec(text?.trim() ?? "");
  if (match === null) return undefined;
  const [offset, end] = [Number(match[1]), Number(match[2]) + 1];
  if (end <= offset || end > size || (match[3] !== "*" && Number(match[3]) !== size)) return undefined;
  return { offset, end };
}

/**
 * Reads the parts while their bytes arrive: `{ offset, bytes }` with views of the input, which are good until the next one. Failure where the body is not what
 * its type says, or ends inside of a part. What follows the last boundary is not looked at.
 */
export async function* readMultipart(
  body: AsyncIterable<Uint8Array>,
  boundary: string,
  size: number,
  host: string,
): AsyncGenerator<{ readonly offset: number; readonly bytes: Uint8Array }, void, void> {
  const delimiter = `--${boundary}`;
  const bad = (problem: string) => new Failure("DATA_LOSS", host, `its answer in parts is malformed: ${problem}`);
  let state: "boundary" | "head" | "data" = "boundary";
  let line = "";
  let lines = 0;
  let behindPart = false;
  let part: RangePart | undefined;
  let at = 0;
  let end = 0;
  for await (const chunk of body) {
    let from = 0;
    while (from < chunk.length) {
      if (state === "data") {
        const count = Math.min(end - at, chunk.length - from);
        yield { offset: at, bytes: chunk.subarray(from, from + count) };
        at += count;
        from += count;
        if (at === end) {
          state = "boundary";
          behindPart = true;
        }
        continue;
      }
      const newline = chunk.indexOf(0x0a, from);
      const stop = newline < 0 ? chunk.length : newline + 1;
      line += Buffer.from(chunk.buffer, chunk.byteOffset + from, stop - from).toString("latin1");
      from = stop;
      if (line.length > LINE_LIMIT) throw bad(`a line of more than ${LINE_LIMIT} bytes`);
      if (newline < 0) continue;
      const ending = line.endsWith("\r\n") ? 2 : 1;
      const text = line.slice(0, -ending);
      line = "";
      if (state === "boundary") {
        const trimmed = text.trimEnd();
        if (trimmed === `${delimiter}--`) return;
        if (trimmed === delimiter) {
          state = "head";
          lines = 0;
          part = undefined;
        } else if (behindPart && (text !== "" || ending !== 2)) {
          throw bad(`"${printable(text, 40)}" where a part should have ended`); // not as long as its Content-Range says
        }
        behindPart = false;
        continue;
      }
      if (text === "") {
        if (part === undefined) throw bad("a part does not say which bytes it has");
        at = part.offset;
        end = part.end;
        state = "data";
        continue;
      }
      if (++lines > HEADER_LINES) throw bad(`a part has more than ${HEADER_LINES} header lines`);
      const header = /^content-range:(.*)$/i.exec(text);
      if (header === null) continue;
      part = parseContentRange(header[1], size);
      if (part === undefined) throw bad(`a part has the range "${printable(header[1]!, 60)}" of ${size} bytes`);
    }
    releaseChunk(chunk);
  }
  if (state === "data") {
    throw new Failure("UNAVAILABLE", host, `the body ended ${end - at} bytes before the end of a part`, {
      again: true,
    });
  }
}
