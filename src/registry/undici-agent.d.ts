/** The file of undici that http.ts loads by itself; undici's types know it by its index only. */
declare module "undici/lib/dispatcher/agent.js" {
  import { Agent } from "undici";
  export default Agent;
}
