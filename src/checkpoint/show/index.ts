/**
 * Looking into checkpoint archives.
 *
 * Guarantees: nothing is extracted, and no more is read than what is shown: in a plain archive, and in zstd with an index,
 * the memory and the file contents are passed over, so the time does not depend on their size. In other compressed ones a
 * survey ends before the first large member once it knows the container (`full` goes on), and says so. Memory is bounded by
 * the limits of the formats. FormatError for what is no such archive.
 */
export { type ListedFile, type ListOptions, listArchive } from "./list.ts";
export {
  type ContainerFacts,
  decodeContainer,
  decodeDeleted,
  decodeNetworks,
  decodeSpec,
  MAX_METADATA,
  type SpecFacts,
} from "./metadata.ts";
export { type CheckpointSurvey, type SectionSize, surveyArchive, type SurveyOptions } from "./survey.ts";
