/** A kernel that lacks a system call, or a filter that says so: seccomp(2), linux/seccomp.h, linux/filter.h. */
import koffi from "koffi";
import { call } from "../libc-call.ts";

const PR_SET_NO_NEW_PRIVS = 38;
const PR_SET_SECCOMP = 22;
const SECCOMP_MODE_FILTER = 2;
const SECCOMP_RET_ERRNO = 0x00050000;
const SECCOMP_RET_ALLOW = 0x7fff0000;
const LOAD_WORD = 0x20; // BPF_LD | BPF_W | BPF_ABS; the number is the first word
const JUMP_IF_EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN = 0x06;

/** From here on, in this thread and what it starts, `number` answers `errno`. */
export function denyCall(number: number, errno: number): void {
  const steps = [
    [LOAD_WORD, 0, 0, 0],
    [JUMP_IF_EQUAL, 0, 1, number],
    [RETURN, 0, 0, SECCOMP_RET_ERRNO | errno],
    [RETURN, 0, 0, SECCOMP_RET_ALLOW],
  ] as const;
  const code = Buffer.alloc(8 * steps.length);
  for (const [i, [operation, whenTrue, whenFalse, operand]] of steps.entries()) {
    code.writeUInt16LE(operation, 8 * i);
    code.writeUInt8(whenTrue, 8 * i + 2);
    code.writeUInt8(whenFalse, 8 * i + 3);
    code.writeUInt32LE(operand, 8 * i + 4);
  }
  const program = Buffer.alloc(16); // struct sock_fprog: a length and a pointer
  program.writeUInt16LE(steps.length, 0);
  program.writeBigUInt64LE(koffi.address(code), 8);
  const prctl = "int prctl(int, uint64_t, const void *, uint64_t, uint64_t)";
  call(prctl, "prctl", undefined, PR_SET_NO_NEW_PRIVS, 1, null, 0, 0);
  call(prctl, "prctl", undefined, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0);
}
