// Resolves with c-ares through one server: node names.mjs SERVER TYPE NAME; prints the answer or the error as JSON.
import { Resolver } from 'node:dns/promises';

const [server, type, name] = process.argv.slice(2);
const resolver = new Resolver({ timeout: 4000, tries: 1 });
resolver.setServers([server]);
resolver.resolve(name, type).then(
  (found) => console.log(JSON.stringify(found)),
  (error) => console.log(JSON.stringify(error.code)),
);
